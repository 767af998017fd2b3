"""BLEU, ROUGE-L and CIDEr-D: by hand, against pycocoevalcap, and where captions or references are missing."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import random
from collections.abc import Sequence

import pytest
import torch
from captions_at_hand import pictured, random_caption, random_corpus, said
from torch import Tensor

from seepage import registry
from seepage.metrics import Bleu1, Bleu2, Bleu4, CaptionMetric, Cider, RougeL
from seepage.metrics.caption import longest_common
from seepage.metrics.tokens import words
from seepage.types import Images, NotRunError, Recovery, SeepageError, Status

BLEU = ("bleu1", "bleu2", "bleu3", "bleu4")
needs_pycocoevalcap = pytest.mark.skipif(
    importlib.util.find_spec("pycocoevalcap") is None, reason="needs the caption extra's pycocoevalcap"
)


def test_bleu_clips_repeated_words() -> None:
    """Papineni et al. 2002, section 2.1: of seven times "the" two count."""
    truth = pictured(["the cat is on the mat", "there is a cat on the mat"])
    recovery = said("the the the the the the the")
    assert Bleu1()(truth, recovery).item() == pytest.approx(2 / 7, abs=1e-9)
    assert Bleu2()(truth, recovery).item() < 1e-3


def test_bleu_penalises_brevity_by_the_nearest_reference() -> None:
    truth = pictured(["a dog runs", "a dog runs on the wet grass today"])
    assert Bleu1()(truth, said("a dog")).item() == pytest.approx(math.exp(1 - 3 / 2), rel=1e-6)
    assert Bleu1()(truth, said("a dog runs")).item() == pytest.approx(1, rel=1e-6)


def test_bleu_pools_counts_over_the_corpus() -> None:
    truth = pictured(["a dog"], ["a cat sits on a mat"])
    recovery = said("a dog", "a cow sits on the rug")
    pooled = Bleu1().corpus(truth, recovery)
    assert pooled == pytest.approx((2 + 3) / (2 + 6), rel=1e-6)
    assert Bleu1()(truth, recovery).mean().item() == pytest.approx((2 / 2 + 3 / 6) / 2, rel=1e-6)
    assert RougeL().corpus(truth, recovery) is None


def test_rouge_by_hand() -> None:
    """A subsequence of 3 in 4 recovered words of one reference, of 2 in the 2 words of another."""
    truth = pictured(["police killed the gunman today", "police today"])
    precision, recall = 3 / 4, 2 / 2
    expected = (1 + 1.2**2) * precision * recall / (recall + 1.2**2 * precision)
    value = RougeL()(truth, said("police saw gunman today")).item()
    assert value == pytest.approx(expected, rel=1e-12)
    assert RougeL()(truth, said("nothing in common")).item() == 0


def test_longest_common_subsequence_is_the_tables() -> None:
    source = random.Random(0)
    for _ in range(200):
        a, b = (tuple(source.choices("abcdef", k=source.randint(0, 30))) for _ in range(2))
        table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
        for i, x in enumerate(a):
            for j, y in enumerate(b):
                table[i + 1][j + 1] = table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
        assert longest_common(a, b) == table[-1][-1]


def test_cider_by_hand() -> None:
    """One word a caption: the vectors have one entry, so the cosine of single words is 1, those of longer runs 0."""
    truth = pictured(["dog"], ["cat"], ["sea"], ["dog"])
    values = Cider(least=4)(truth, said("dog", "dog", "sky", "dog"))
    assert values.tolist() == pytest.approx([10 / 4, 0, 0, 10 / 4])


def test_cider_weighs_words_by_the_gallerys_references() -> None:
    source = random.Random(1)
    references, captions = random_corpus(source, 80)
    whole = pictured(*references)
    values = Cider()(whole, said(*captions))
    part = Cider()(pictured(*references[:4]), said(*captions[:4]), gallery=whole)
    torch.testing.assert_close(part, values[:4], rtol=0, atol=0)
    assert Cider().corpus(whole, said(*captions)) == pytest.approx(values.mean().item(), rel=1e-12)
    few = pictured(*references[:4])
    with pytest.raises(NotRunError, match="the references of 50 pictures or more, and has those of 4"):
        Cider()(few, said(*captions[:4]))
    assert Cider().corpus(few, said(*captions[:4])) is None


def peers(references: Sequence[Sequence[str]], captions: Sequence[str]) -> dict[str, tuple[float, Tensor]]:
    """What pycocoevalcap says of our words: over the corpus, and of each."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    truth = {row: [" ".join(words(text)) for text in texts] for row, texts in enumerate(references)}
    found = {row: [" ".join(words(text))] for row, text in enumerate(captions)}
    bleu, bleus = Bleu(4).compute_score(truth, found, verbose=0)
    scores = {f"bleu{n + 1}": (bleu[n], bleus[n]) for n in range(4)}
    scores |= {"rouge_l": Rouge().compute_score(truth, found), "cider": Cider().compute_score(truth, found)}
    return {
        key: (float(value), torch.as_tensor(values, dtype=torch.float64)) for key, (value, values) in scores.items()
    }


@needs_pycocoevalcap
def test_pycocoevalcap_agrees_on_300_captions() -> None:
    references, captions = random_corpus(random.Random(2), 300)
    truth, recovery = pictured(*references), said(*captions)
    for key, (corpus, values) in peers(references, captions).items():
        metric = registry.build("metric", key)
        torch.testing.assert_close(metric(truth, recovery), values, rtol=1e-9, atol=1e-12, msg=key)
        pooled = metric.corpus(truth, recovery)
        assert (values.mean().item() if pooled is None else pooled) == pytest.approx(corpus, rel=1e-9), key
        assert len(values.unique()) > 30


@needs_pycocoevalcap
def test_pycocoevalcap_agrees_on_200_corpora() -> None:
    source = random.Random(3)
    for _ in range(200):
        references, captions = random_corpus(source, source.randint(2, 8))
        truth, recovery = pictured(*references), said(*captions)
        expected = peers(references, captions)
        found = {key: registry.build("metric", key).corpus(truth, recovery) for key in BLEU}
        found["cider"] = Cider(least=2).corpus(truth, recovery)
        assert found == {key: pytest.approx(expected[key][0], rel=1e-9, abs=1e-12) for key in found}


@pytest.mark.parametrize("key", [*BLEU, "rouge_l", "cider:least=1"])
def test_what_has_no_words(key: str) -> None:
    """An empty recovery scores 0, a picture without references NaN, and the corpus is the others."""
    metric = registry.build("metric", key)
    truth = pictured(["a dog runs on grass", "..."], [], ["", " ! "], ["a cat sits on a mat"], ["the sea at night"])
    values = metric(truth, said("", "a dog", "a dog", "a cat sits on a mat", "\x00"))
    assert values.isnan().tolist() == [False, True, True, False, False]
    assert values[[0, 4]].tolist() == [0, 0]
    assert values[3] > 0.9
    with_words = pictured(["a dog runs on grass"], ["a cat sits on a mat"], ["the sea at night"])
    both = said("", "a dog", "a dog", "a cat sits on a mat", ""), said("", "a cat sits on a mat", "")
    assert metric.corpus(truth, both[0]) == metric.corpus(with_words, both[1])


@pytest.mark.timeout(60)
@pytest.mark.parametrize("key", [*BLEU, "rouge_l", "cider:least=1"])
def test_a_million_words_end(key: str) -> None:
    source = random.Random(4)
    long = " ".join(source.choices(["a", "dog", "runs", "on", "grass"], k=1_000_000))
    truth = pictured(["a dog runs on grass", long], ["a cat"])
    value = registry.build("metric", key)(truth, said(long, long))
    assert torch.isfinite(value).all()
    cut = " ".join(long.split()[:1000])
    same = registry.build("metric", key)(pictured(["a dog runs on grass", cut], ["a cat"]), said(cut, cut))
    torch.testing.assert_close(value, same, rtol=0, atol=0)


def test_values_do_not_depend_on_the_batch() -> None:
    source = random.Random(5)
    references = [[random_caption(source) for _ in range(3)] for _ in range(60)]
    captions = [random_caption(source) for _ in references]
    truth = pictured(*references)
    for metric in (Bleu4(), RougeL(), Cider()):
        whole = metric(truth, said(*captions))
        rows = [metric(pictured(own), said(text), gallery=truth) for own, text in zip(references, captions)]
        torch.testing.assert_close(torch.cat(rows), whole, rtol=0, atol=0)


@pytest.mark.parametrize("metric", [Bleu4(), RougeL(), Cider(least=1)])
def test_bad_input_is_one_line(metric: CaptionMetric) -> None:
    name = type(metric).__name__
    truth = pictured(["a dog"])
    with pytest.raises(SeepageError, match=f"^{name} got 2 recovered captions of 1 pictures$"):
        metric(truth, said("a dog", "a cat"))
    pictures = Recovery(Images(torch.zeros(1, 3, 4, 4)), (Status("stopped"),), torch.zeros(1).long())
    with pytest.raises(SeepageError, match=f"^{name} scores recovered captions, got Images$"):
        metric(truth, pictures)
    bare = dataclasses.replace(truth, captions=None)
    with pytest.raises(NotRunError, match=f"^{name} needs pictures with reference captions, and these come with none$"):
        metric(bare, said("a dog"))


@pytest.mark.parametrize("metric", [Bleu4(), RougeL(), Cider()])
def test_pictures_of_which_none_has_references_score_nothing(metric: CaptionMetric) -> None:
    truth = pictured([], ["..."])
    assert metric(truth, said("a dog", "a cat")).isnan().all()
    assert metric.corpus(truth, said("a dog", "a cat")) is None
