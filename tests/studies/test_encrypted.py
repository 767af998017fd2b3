"""The tail on ciphertexts: the map that is found, the product, the keys and the frames, each against the plain."""

from __future__ import annotations

import math
import socket
import stat
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from seepage import victims
from seepage.studies.encrypted_keys import KeyFileError, Keys, make_keys, read_keys
from seepage.studies.encrypted_tail import AffineTail, TailError, affine_tail, spread_out
from seepage.studies.encrypted_wire import ExchangeError, Greeting, Kind, Line, connect
from seepage.victims.cut import cut

SMALL = (4096, (40, 28, 40), 28)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Keys, Keys]:
    """The client's keys and the server's."""
    pytest.importorskip("tenseal")
    secret, public = make_keys(tmp_path_factory.mktemp("keys"), *SMALL)
    return read_keys(secret, secret=True), read_keys(public, secret=False)


def drawn(outputs: int, shape: tuple[int, ...], pooled: tuple[int, ...], seed: int = 0) -> AffineTail:
    """A tail of outputs around one."""
    draws = torch.Generator().manual_seed(seed)
    channels = math.prod(size for axis, size in enumerate(shape) if axis not in pooled)
    matrix = torch.randn(outputs, channels, generator=draws) / math.sqrt(math.prod(shape))
    return AffineTail(matrix, torch.randn(outputs, generator=draws), shape, pooled)


@pytest.mark.parametrize(
    ("outputs", "shape", "pooled"),
    [
        (1, (3,), ()),
        (5, (16,), ()),
        (10, (64, 8, 8), (1, 2)),
        (4, (5, 700), (0,)),
        (3, (5000,), ()),
        (3, (2, 3000), (0,)),
    ],
    ids=["one number", "fewer outputs than slots", "pooled, two ciphertexts", "tokens", "wide", "wide and pooled"],
)
def test_the_product_is_the_plain_one(
    pair: tuple[Keys, Keys], outputs: int, shape: tuple[int, ...], pooled: tuple[int, ...]
) -> None:
    from seepage.studies.encrypted_product import Layout, Product, Sealer

    secret, public = pair
    tail = drawn(outputs, shape, pooled)
    features = torch.randn(1, *shape, generator=torch.Generator().manual_seed(9))
    product, sealer = Product(tail, public), Sealer(secret)
    positions = math.prod(shape[axis] for axis in pooled)
    packed = Layout(positions, tail.channels, secret.slots).pack(spread_out(features, pooled)[0].double().numpy())
    found = sealer.decrypt(product(sealer.encrypt(packed)), outputs)
    summed = features.sum([axis + 1 for axis in pooled]) if pooled else features
    plain = (tail.matrix @ summed.flatten() + tail.bias).numpy()
    np.testing.assert_allclose(found, plain, atol=5e-3)
    assert np.ptp(plain) > 0.1 or outputs == 1


class Pooling(nn.Module):
    """A convolution, a rectifier, a pool, a linear layer."""

    image_shape = (3, 8, 8)

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.relu = nn.ReLU()
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.relu(self.conv(x)).mean((2, 3)))


VICTIM = "module/test_encrypted:Pooling"


def test_a_tail_is_found_by_asking_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    victim = victims.load(VICTIM)
    tail = affine_tail(victim, cut(victim, "relu"))
    head = victim.model.get_submodule("head")
    assert (tail.shape, tail.pooled, tail.kind) == ((6, 8, 8), (1, 2), "pool and linear")
    torch.testing.assert_close(tail.matrix, head.weight / 64, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(tail.bias, head.bias)
    # The mean (1), the rectifier (14) and the linear layer (1) follow one another.
    with pytest.raises(TailError, match=r"from 'conv' on is not affine .* depth about 16 .*the tail from 'relu' on is"):
        affine_tail(victim, cut(victim, "conv"))


def test_the_secret_is_for_its_owner_and_no_server_takes_it(tmp_path: Path) -> None:
    pytest.importorskip("tenseal")
    secret, public = make_keys(tmp_path / "keys", *SMALL)
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    assert not read_keys(public, secret=False).context.is_private()
    assert read_keys(public, secret=False).fingerprint == read_keys(secret, secret=True).fingerprint
    with pytest.raises(KeyFileError, match="holds the secret key, which a server must not have"):
        read_keys(secret, secret=False)
    with pytest.raises(KeyFileError, match="holds no secret key"):
        read_keys(public, secret=True)
    with pytest.raises(KeyFileError, match="is there already"):
        make_keys(tmp_path / "keys", *SMALL)
    for junk in (b"", b"junk", secret.read_bytes()[:1000]):
        (tmp_path / "junk").write_bytes(junk)
        with pytest.raises(KeyFileError, match="holds no TenSEAL context"):
            read_keys(tmp_path / "junk", secret=True)


@pytest.mark.parametrize(
    ("degree", "bits", "scale", "said"),
    [
        (5000, (40, 40), 30, "one of 4096, 8192, 16384"),
        (4096, (60, 40, 60), 40, "160 together: degree 4096 .* with 109 at most; --degree 8192 allows 218"),
        (8192, (60, 70, 60), 40, "20 to 60 bits"),
        (8192, (60,), 40, "two primes or more"),
        (8192, (60, 40, 60), 61, "from 10 to 60"),
    ],
)
def test_keys_that_cannot_be(tmp_path: Path, degree: int, bits: tuple[int, ...], scale: int, said: str) -> None:
    with pytest.raises(KeyFileError, match=said):
        make_keys(tmp_path, degree, bits, scale)


@pytest.mark.parametrize(
    ("bits", "scale", "outputs", "said"),
    [
        ((50, 50), 30, 4, "have no level for a product"),
        (SMALL[1], 28, 3000, "hold 2,048 outputs at most, and the tail has 3,000: --degree 8192"),
        (SMALL[1], 38, 4, "hold answers up to 2 at a scale of 2\\^38"),
        (SMALL[1], 20, 4, "would be off by about 12.* of an answer"),
    ],
    ids=["levels", "slots", "size", "precision"],
)
def test_keys_too_small_for_the_tail(
    tmp_path: Path, bits: tuple[int, ...], scale: int, outputs: int, said: str
) -> None:
    pytest.importorskip("tenseal")
    from seepage.studies.encrypted_product import Product

    _, public = make_keys(tmp_path, 4096, bits, scale)
    with pytest.raises(KeyFileError, match=said):
        Product(drawn(outputs, (16,), ()), read_keys(public, secret=False))


def test_without_the_extra_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tenseal", None)
    with pytest.raises(KeyFileError, match=r"needs the `he` extra: pip install 'seepage\[he\]'$"):
        make_keys(tmp_path)


def test_a_frame_is_what_was_expected_or_an_error() -> None:
    there, here = socket.socketpair()
    with there, here:
        far, near = Line(there, 5.0), Line(here, 0.2)
        far.send(Kind.ANSWER, b"12345")
        assert near.receive(Kind.ANSWER) == b"12345"
        assert far.sent == near.received == 7 + 5
        far.send(Kind.ANSWER, b"12345")
        with pytest.raises(ExchangeError, match="5 bytes where 4 are the most"):
            near.receive(Kind.ANSWER, 4)
    for sent, said in (
        (b"GET / HTTP/1.1\r\n", "expected a frame READY"),
        (b"sp\x02\x00\x00\x00\x09part", "no whole frame within"),
        (b"sp\x05\x00\x00\x00\x14" + b'{"message": "a\\nno"}', "refuses: a no"),
    ):
        there, here = socket.socketpair()
        with there, here:
            there.sendall(sent)
            with pytest.raises(ExchangeError, match=said):
                Line(here, 0.2).receive(Kind.READY)


@pytest.mark.parametrize("body", [b"", b"[" * 100_000, b"[]", b'{"version": 2}', b'{"version": 1, "shape": ["a"]}'])
def test_a_greeting_that_is_none(body: bytes) -> None:
    own = Greeting("ab", "relu", (6, 8, 8), "cd")
    assert Greeting.read(own.frame()) == own
    with pytest.raises(ExchangeError):
        Greeting.read(body)


@pytest.mark.parametrize("address", ["localhost", ":7100", "host:", "127.0.0.1:99999", "127.0.0.1:x"])
def test_an_address_that_is_none(address: str) -> None:
    with pytest.raises(ExchangeError, match="is HOST:PORT"):
        connect(address)
