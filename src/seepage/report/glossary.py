"""What the words and numbers of a report mean: metrics with unit and direction, controls, terms."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from ..schema import Cell, Scale, Stats
from . import text


@dataclass(frozen=True)
class Measure:
    """How one metric is named, written and read."""

    key: str
    label: str
    definition: str
    unit: str = ""
    higher_leaks: bool = True
    digits: int = 3
    style: Literal["fixed", "significant", "percent"] = "fixed"

    @property
    def told(self) -> str:
        """The definition, and which way is more leakage where either is."""
        direction = f"; {'higher' if self.higher_leaks else 'lower'} is more leakage"
        return self.definition + ("" if self.definition.endswith("not leakage") else direction)

    def show(self, value: float | None) -> str:
        """Return a value without its unit, except for percentages."""
        if self.style == "percent":
            return text.percent(value)
        return text.significant(value) if self.style == "significant" else text.number(value, self.digits)

    def with_unit(self, value: float | None) -> str:
        """Return a value with its unit."""
        return f"{self.show(value)}{text.NARROW}{self.unit}" if self.unit else self.show(value)

    def limit(self, value: float) -> str:
        """Return a value that somebody chose, with no digits but those it has."""
        if self.style == "percent":
            return text.percent(value)
        return f"{value:g}{text.NARROW}{self.unit}" if self.unit else f"{value:g}"

    def interval(self, stats: Stats) -> str:
        """Return the 95 % interval of the mean."""
        return f"{self.show(stats.ci_low)} to {self.show(stats.ci_high)}"

    def leaks_more(self, value: float, other: float) -> bool:
        """Return whether a value says more leakage than another; NaN never does."""
        return value > other if self.higher_leaks else value < other

    def leakage(self, value: float) -> float:
        """Return the value on a scale on which more is more leakage, NaN below everything."""
        return -math.inf if math.isnan(value) else value if self.higher_leaks else -value


_MEASURES = (
    Measure("psnr", "PSNR", "10 log10(1 / MSE) on pictures clipped to [0, 1], capped at 160 dB", "dB", digits=1),
    Measure(
        "ssim",
        "SSIM",
        "structural similarity under a Gaussian window (Wang et al. 2004), mean over RGB; 1 for the same picture",
    ),
    Measure(
        "ms_ssim", "MS-SSIM", "structural similarity over several scales (Wang et al. 2003); 1 for the same picture"
    ),
    Measure(
        "lpips",
        "LPIPS",
        "distance between a network's features of both pictures (Zhang et al. 2018); 0 for the same picture",
        higher_leaks=False,
    ),
    Measure(
        "agreement",
        "Label agreement",
        "share of recovered pictures that the judge, a model other than the victim, gives the original's label",
        style="percent",
    ),
    Measure(
        "mse",
        "MSE",
        "mean squared error over pixels and channels of pictures in [0, 1]; 0 for the same picture",
        higher_leaks=False,
        style="significant",
    ),
    Measure(
        "rank1",
        "Identified",
        "share of recovered pictures whose nearest gallery picture, by a face judge's features, is of the same person",
        style="percent",
    ),
    Measure(
        "knn_distance",
        "KNN distance",
        "smallest distance from the recovered picture to other pictures of the same person, in a face judge's features",
        higher_leaks=False,
        style="significant",
    ),
    Measure(
        "cider",
        "CIDEr-D",
        "ten times the cosine of rare runs of words with the reference captions (Vedantam et al. 2015)",
    ),
    *(
        Measure(f"bleu{n}", f"BLEU-{n}", f"share of recovered runs of up to {n} words that a reference caption has")
        for n in range(1, 5)
    ),
    Measure(
        "rouge_l", "ROUGE-L", "F-measure of the longest run of words, gaps allowed, shared with a reference caption"
    ),
    Measure("meteor", "METEOR", "words shared with a reference caption by form, stem, synonym or paraphrase"),
    Measure("spice", "SPICE", "objects, attributes and relations shared with the reference captions"),
    Measure("cosine", "Cosine", "cosine of a sentence encoder's vectors of the caption and its nearest reference"),
    *(
        Measure(
            f"recall{n}",
            f"Recall@{n}",
            f"share of pictures whose own caption is among the {n} best of the candidates that the attack ranks",
            style="percent",
        )
        for n in (1, 5, 10)
    ),
    Measure(
        "nll",
        "Surprise of the references",
        "how unforeseen the reference captions are to the attack's language model under the picture's own leak",
        "nat/token",
        higher_leaks=False,
        digits=2,
    ),
    Measure(
        "nll_gap",
        "Likelihood gap",
        "how much likelier the recovered caption is under its own leak than under another picture's",
        "nat/token",
        digits=2,
    ),
    *(
        Measure(
            f"top{n}",
            f"Top-{n}",
            f"share of pictures whose true label is {'the best' if n == 1 else f'among the best {n}'} that the attack "
            "gives, or the judge for the recovered picture",
            style="percent",
        )
        for n in (1, 5)
    ),
    Measure(
        "perplexity",
        "Perplexity",
        "how unforeseen the caption is to a language model that did not write it: fluency, not leakage",
        higher_leaks=False,
        digits=1,
    ),
    Measure(
        "repetition",
        "Repetition",
        "share of the caption's pairs of words that stood in it before: fluency, not leakage",
        higher_leaks=False,
        style="percent",
    ),
    Measure(
        "distinct",
        "Distinct pairs",
        "share of different pairs of words; over the corpus, among all captions: fluency, not leakage",
        style="percent",
    ),
)
_BY_KEY: Mapping[str, Measure] = {measure.key: measure for measure in _MEASURES}

CONTROLS: Mapping[str, str] = {
    "mean_picture": "the mean of the attacker's own public or synthetic pictures, never of the pictures under audit",
    "prior": "the same attack run with no leak: what it makes of its own assumptions",
    "shuffled": "the very recoveries, each scored against another picture",
    "constant": "the one answer that scores best on the attacker's training pictures",
    "zero_features": "the same attack handed a leak of zeros",
}

CEILINGS: Mapping[str, str] = {
    "original": "the originals themselves, scored as recoveries are: no attack can be expected to do better",
    "human": "one reference caption of each picture, scored against its others: what a person who sees it reaches",
}

TERMS: tuple[tuple[str, str], ...] = (
    ("Layer", "where the model is cut: up to it the device computes, its output (the leak) is what an attacker sees"),
    ("Work on the device", "the share of the model's multiply-adds before the cut"),
    ("95 % interval", "of the mean, by 2 000 bootstrap draws of the pictures; it says nothing of other attacks"),
    ("Worst decile", "the mean of the tenth of the pictures that leak most, of at least one picture"),
    ("Control", "what an attacker without the features reaches; a recovery no better than it shows no leakage"),
    ("Ceiling", "what the originals themselves score, or human captions, for metrics that have no perfect value"),
    ("Recovery", "where the mean squared error lies between the strongest control (0 %) and the original (100 %)"),
    ("Residual", "how far the recovered picture's features are from the leak, relative to it: small is not yet right"),
    ("Passes", "runs through the model up to the cut, forward or forward and backward, that one picture took"),
    ("White-box", "the attacker holds the model up to the cut; black-box: only leaks and what is said of them"),
    ("Auxiliary", "the pictures the attacker learns from: none, synthetic ones, or public ones"),
)  # fmt: skip

TERMS_OF_CAPTIONS: tuple[tuple[str, str], ...] = (
    ("Reference", "a caption that a person wrote for the picture; recovered captions are scored by what they share"),
    ("Nat a token", "the natural logarithm of how unlikely a piece of a word is to a language model, averaged"),
)

TERMS_OF_LABELS: tuple[tuple[str, str], ...] = (
    ("Label", "the class of a picture by the data, known to the audit alone; classes are matched by their names"),
)

LIMITS = (
    "An audit shows what these attacks recovered from these pictures. It cannot show that no attack recovers more: "
    "a low score is the failure of the attacks that were run, not a proof of privacy."
)


def measure(key: str, cells: Iterable[Cell] = ()) -> Measure:
    """Return how a metric is written; one that a plug-in brought by its key, in the unit that the cells record."""
    if key in _BY_KEY:
        return _BY_KEY[key]
    scale = next((cell.scales[key] for cell in cells if key in cell.scales), Scale())
    return Measure(key, key, "defined by the component that brought it", scale.unit, scale.higher_means_more_leakage)


def ordered(keys: set[str]) -> tuple[str, ...]:
    """Return metric keys in the order a reader wants them, unknown ones last."""
    known = [measure.key for measure in _MEASURES if measure.key in keys]
    return (*known, *sorted(keys - set(known)))


def control_name(name: str) -> str:
    """Return a control's name in words."""
    return name.replace("_", " ")
