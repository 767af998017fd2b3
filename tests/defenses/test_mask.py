"""The mask: RFC 8439's stream, bit for bit there and back, uniform on the way, one use."""

from __future__ import annotations

import copy
import os
import pickle
import stat
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seepage.defenses import SecretError, read_secret, spend_secret, write_secret
from seepage.defenses.mask import Mask, keystream
from seepage.types import Leak, LeakHeader

HEADER = LeakHeader("module/toy", "ab", "body", "as it is")


def leak(features: torch.Tensor) -> Leak:
    return Leak(features, HEADER)


def bits(values: torch.Tensor) -> torch.Tensor:
    return values.view(torch.int32)


def test_the_stream_is_that_of_rfc_8439() -> None:
    """Section 2.4.2, the key stream of its two blocks, and appendix A.1, vector 1."""
    key, nonce = bytes(range(32)), bytes.fromhex("000000000000004a00000000")
    plain = (
        b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future, sunscreen "
        b"would be it."
    )
    sealed = bytes.fromhex(
        "6e2e359a2568f98041ba0728dd0d6981e97e7aec1d4360c20a27afccfd9fae0bf91b65c5524733ab8f593dabcd62b357"
        "1639d624e65152ab8f530c359f0861d807ca0dbf500d6a6156a38e088a22b65e52bc514d16ccf806818ce91ab7793736"
        "5af90bbf74a35be6b40b8eedf2785e42874d"
    )
    stream = keystream(key, len(plain), nonce=nonce, counter=1)
    assert bytes(a ^ b for a, b in zip(plain, stream, strict=True)) == sealed
    assert keystream(bytes(32), 16).hex() == "76b8e0ada0f13d90405d6ae55386bd28"


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=40), st.integers(1, 3))
def test_every_pattern_of_bits_comes_back(patterns: list[int], rows: int) -> None:
    """NaN with its payload, infinities, denormals and both zeros among them."""
    special = [0x7FC00001, 0xFFFFFFFF, 0x7F800000, 0xFF800000, 1, 0x80000001, 0x80000000, 0]
    row = np.array([*patterns, *special], dtype=np.uint32).view(np.int32)
    clean = torch.from_numpy(np.tile(row, (rows, 1))).view(torch.float32)
    sent, secret = Mask().protect(leak(clean), ())
    assert sent.features.dtype == torch.int32
    assert (bits(clean) != sent.features).float().mean() > 0.9
    back = Mask().restore(sent, secret)
    assert torch.equal(bits(back.features), bits(clean))
    assert back.header == HEADER


def test_masked_bits_are_uniform_whatever_is_masked() -> None:
    sent, _ = Mask().protect(leak(torch.zeros(4, 50_000)), ())
    octets = sent.features.view(torch.uint8).long()
    counts = octets.flatten().bincount(minlength=256).double()
    mean = octets.numel() / 256
    statistic = float(((counts - mean).square() / mean).sum())
    assert statistic < 255 + 6 * (2 * 255) ** 0.5, "chi squared with 255 degrees of freedom"
    assert len({tuple(row[:8].tolist()) for row in sent.features}) == 4, "a key a row"


def test_keys_are_fresh_whatever_the_generators() -> None:
    clean = leak(torch.ones(1, 8))
    sends = [Mask().protect(clean, [torch.Generator().manual_seed(0)])[0] for _ in range(3)]
    assert not torch.equal(sends[0].features, sends[1].features)
    law = Mask().law()
    drawn = [law.sample(clean, [torch.Generator().manual_seed(0)]).features for _ in range(2)]
    assert torch.equal(*drawn), "what an attacker imagines is reproducible"
    assert law.expected(clean) is None
    assert law.log_likelihood(sends[0], clean) is None


def test_a_secret_serves_once_and_its_own_leak_alone() -> None:
    clean = leak(torch.randn(2, 8))
    sent, secret = Mask().protect(clean, ())
    other, others_secret = Mask().protect(clean, ())
    with pytest.raises(SecretError, match="of another leak"):
        Mask().restore(other, secret)
    assert torch.equal(Mask().restore(sent, secret).features, clean.features), "a wrong leak does not spend it"
    with pytest.raises(SecretError, match="used already"):
        Mask().restore(sent, secret)
    with pytest.raises(SecretError, match="there is none"):
        Mask().restore(sent, None)
    with pytest.raises(SecretError, match="int32"):
        Mask().restore(clean, others_secret)


def test_nothing_that_is_printed_shows_a_key() -> None:
    sent, secret = Mask().protect(leak(torch.randn(1, 8)), ())
    key = secret.tensors["key"]
    numbers = str(key[0, :4].tolist())[1:-1]
    for shown in (repr(secret), str(secret), repr(sent), f"{sent.header}"):
        assert numbers not in shown
        assert bytes(key[0].tolist()).hex() not in shown


def test_a_secret_as_a_file_is_its_owners_alone_and_empty_when_used(tmp_path: Path) -> None:
    clean = [leak(torch.randn(1, 8)) for _ in range(3)]
    pairs = [Mask().protect(one, ()) for one in clean]
    path = tmp_path / "kept.safetensors"
    before = os.umask(0)
    try:
        write_secret([secret for _, secret in pairs], path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    together = replace(pairs[0][0], features=torch.cat([sent.features for sent, _ in pairs]))
    secret = read_secret(path)
    key = bytes(secret.tensors["key"][1].tolist())
    assert key in path.read_bytes()
    back = Mask().restore(together, secret)
    assert torch.equal(back.features, torch.cat([one.features for one in clean]))
    spend_secret(path)
    assert key not in path.read_bytes()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(SecretError, match="used already"):
        read_secret(path)
    (tmp_path / "no").write_bytes(pickle.dumps({}))
    with pytest.raises(SecretError, match="cannot be read"):
        read_secret(tmp_path / "no")


def test_a_copy_of_a_secret_is_somebody_elses_problem() -> None:
    """One object serves once; who copies the key first has two."""
    sent, secret = Mask().protect(leak(torch.ones(1, 4)), ())
    kept = copy.deepcopy(secret)
    Mask().restore(sent, secret)
    assert "key" not in secret.tensors
    assert torch.equal(Mask().restore(sent, kept).features, torch.ones(1, 4))
