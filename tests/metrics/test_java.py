"""METEOR and SPICE: the real programs where they are, a reason where they are not."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from captions_at_hand import pictured, random_corpus, said

from seepage.metrics import Meteor, Spice, java
from seepage.metrics.sentences import Pair
from seepage.metrics.tokens import words
from seepage.types import NotRunError


@pytest.fixture
def meteor() -> Meteor:
    metric = Meteor()
    reason = metric.unavailable((3, 8, 8))
    if reason is not None:
        pytest.skip(reason)
    return metric


@pytest.fixture
def no_java(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.fixture
def dying_java(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A java that ends at once, as one does that is too old or gets no memory."""
    program = tmp_path / "java"
    program.write_text("#!/bin/sh\necho 'Error: could not reserve enough space' >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    java.started.cache_clear()
    yield
    java.started.cache_clear()


@pytest.mark.slow
def test_meteor_knows_words_by_stem_and_synonym(meteor: Meteor) -> None:
    truth = pictured(*[["a man is riding a bicycle down the street"]] * 4, [])
    values = meteor(
        truth,
        said(
            "a man is riding a bicycle down the street",
            "a man rides a bike down the street",
            "two cats sleep",
            "",
            "a man",
        ),
    )
    assert values[0] == pytest.approx(1, abs=0.01)
    assert 0.3 < values[1] < 0.9
    assert values[2] < 0.1
    assert values[3] == 0
    assert values[4].isnan()


@pytest.mark.slow
def test_meteor_is_pycocoevalcaps(meteor: Meteor) -> None:
    from pycocoevalcap.meteor.meteor import Meteor as Theirs

    references, captions = random_corpus(random.Random(0), 200)
    truth, recovery = pictured(*references), said(*captions)
    theirs = Theirs()
    try:
        corpus, values = theirs.compute_score(
            {row: [" ".join(words(text)) for text in texts] for row, texts in enumerate(references)},
            {row: [" ".join(words(text))] for row, text in enumerate(captions)},
        )
    finally:
        theirs.meteor_p.kill()
        theirs.meteor_p.communicate()
    torch.testing.assert_close(
        meteor(truth, recovery), torch.tensor(values, dtype=torch.float64), rtol=1e-9, atol=1e-12
    )
    assert meteor.corpus(truth, recovery) == pytest.approx(corpus, rel=1e-9)


@pytest.mark.slow
def test_meteor_survives_what_its_protocol_is_made_of(meteor: Meteor) -> None:
    truth = pictured(["a dog ||| runs"], ["SCORE ||| EVAL"], ["café ||| naïve\nline"])
    values = meteor(truth, said("||| a dog runs", "EVAL |||", "café ||| naïve line"))
    assert torch.isfinite(values).all()
    assert values[2] == pytest.approx(1, abs=0.05)


@pytest.mark.slow
def test_meteor_starts_again_after_its_program_was_killed(meteor: Meteor) -> None:
    truth, recovery = pictured(["a dog runs"]), said("a dog runs")
    before = meteor(truth, recovery)
    java.started().close()
    assert torch.equal(meteor(truth, recovery), before)


@pytest.mark.usefixtures("no_java")
@pytest.mark.parametrize("metric", [Meteor(), Spice()])
def test_no_java_is_a_reason(metric: Meteor | Spice) -> None:
    reason = metric.unavailable((3, 8, 8))
    assert reason == f"{type(metric).__name__.upper()} is a program in Java, and there is no java on the PATH"
    with pytest.raises(NotRunError, match="no java on the PATH"):
        metric(pictured(["a dog"]), said("a dog"))


@pytest.mark.usefixtures("dying_java")
def test_a_java_that_dies_is_a_reason() -> None:
    pytest.importorskip("pycocoevalcap", reason="needs the caption extra's pycocoevalcap")
    reason = Meteor().unavailable((3, 8, 8))
    assert reason is not None
    assert "METEOR ended" in reason
    assert reason.endswith("could not reserve enough space")
    assert "\n" not in reason


@pytest.mark.usefixtures("dying_java")
def test_spice_says_what_java_said() -> None:
    pytest.importorskip("pycocoevalcap", reason="needs the caption extra's pycocoevalcap")
    with pytest.raises(NotRunError, match=r"^SPICE failed: Error: could not reserve enough space$"):
        Spice().scores([Pair("a dog", ("a dog",))], ())


def test_spice_names_the_models_it_lacks() -> None:
    pytest.importorskip("pycocoevalcap", reason="needs the caption extra's pycocoevalcap")
    if shutil.which("java") is None:
        pytest.skip("there is no java on the PATH")
    reason = Spice().unavailable((3, 8, 8))
    if reason is None:
        pytest.skip("the models are here")
    assert reason.startswith("SPICE needs stanford-corenlp-3.6.0")
    assert "spice/lib" in reason
