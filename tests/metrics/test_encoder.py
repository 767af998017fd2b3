"""Sentence embeddings and their cosine, with MiniLM's own weights."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from captions_at_hand import pictured, said

from seepage import assets
from seepage.metrics import Cosine, encoder
from seepage.minilm import Encoder
from seepage.types import NotRunError

needs_transformers = pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None, reason="needs the caption extra's transformers"
)
SENTENCES = ("A black dog runs on the grass.", "A dog is running across a lawn.", "Two people eat at a table.")


@pytest.fixture(scope="module")
def minilm() -> Encoder:
    return Encoder()


@needs_transformers
@pytest.mark.assets
def test_vectors_are_of_unit_length_and_know_what_is_alike(minilm: Encoder) -> None:
    vectors = minilm.encode(SENTENCES)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(3))
    alike = vectors @ vectors.T
    assert alike[0, 1] > 0.5
    assert alike[0, 2] < 0.2
    assert alike[1, 2] < 0.2


@needs_transformers
@pytest.mark.assets
def test_a_vector_is_the_mean_state_of_its_own_words(minilm: Encoder) -> None:
    """Padding of a longer neighbour, case, and what is no valid text change nothing."""
    together = minilm.encode([SENTENCES[0], " ".join(SENTENCES * 10)])[0]
    torch.testing.assert_close(minilm.one(SENTENCES[0]), together, atol=1e-5, rtol=0)
    assert torch.equal(minilm.one("A DOG RUNS\udce9"), minilm.one("a dog runs"))
    assert minilm.encode([]).shape == (0, 384)


@needs_transformers
@pytest.mark.assets
def test_loading_leaves_global_randomness_alone() -> None:
    before = torch.random.get_rng_state()
    Encoder()
    assert torch.equal(torch.random.get_rng_state(), before)


@needs_transformers
@pytest.mark.assets
def test_cosine_is_that_of_the_nearest_reference(minilm: Encoder) -> None:
    truth = pictured([SENTENCES[2], SENTENCES[1]], [SENTENCES[0]], [], [SENTENCES[1]])
    values = Cosine()(truth, said(SENTENCES[0], SENTENCES[0], "a dog", " ... "))
    alike = minilm.encode(SENTENCES) @ minilm.encode(SENTENCES).T
    assert values[0].item() == pytest.approx(alike[0, 1].item(), abs=1e-5)
    assert values[1].item() == pytest.approx(1, abs=1e-6)
    assert values[2].isnan()
    assert values[3] == 0
    assert Cosine().corpus(truth, said(*SENTENCES, "")) is None


@needs_transformers
@pytest.mark.assets
@pytest.mark.timeout(60)
def test_a_million_words_are_cut(minilm: Encoder) -> None:
    long = "a dog runs on the grass and " * 150_000
    assert torch.isfinite(minilm.one(long)).all()
    assert Cosine()(pictured([SENTENCES[0]]), said("dog" * 1_000_000)).isfinite().all()


@needs_transformers
def test_no_weights_are_a_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SEEPAGE_HOME", str(tmp_path))
    nowhere = {
        name: assets.Asset(name, asset.filename, asset.sha256, asset.size, (assets.Url("http://127.0.0.1:1/w"),))
        for name, asset in assets.TEXT.items()
    }
    monkeypatch.setattr(assets, "TEXT", nowhere)
    encoder.loaded.cache_clear()
    reason = Cosine().unavailable((3, 8, 8))
    assert reason is not None
    assert reason.startswith("cosine needs MiniLM: minilm is not in the cache and no source gave it")
    assert "\n" not in reason
    with pytest.raises(NotRunError, match="cosine needs MiniLM"):
        Cosine()(pictured(["a dog"]), said("a dog"))
