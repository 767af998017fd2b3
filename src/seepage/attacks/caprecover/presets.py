"""The paper's configurations, one a published cell, and its authors' scheme."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib import resources
from typing import Literal

from ...registry import suggest
from ...types import SeepageError
from .fitting import Course
from .language import LanguageModel
from .model import ModelConfig, configured
from .pretrained import PretrainedError, resolve
from .qformer import QFormerConfig


class UnknownPresetError(SeepageError):
    """A preset that is not shipped; the message names the nearest."""


@dataclass(frozen=True)
class Preset:
    """One published cell: victim, cut and pictures as a command line has them, and how the attack was trained.

    `start` is the checkpoint of the Q-Former, `language` that of the language model; batch, rate, epochs and beams are
    those of the README. `published` has the metrics' own keys and scales; none where the paper gives no number that can
    be told. Which CLIP ViT the label scores are of is not said: ViT-B/32 is its smallest. The cosine of 0.00 at layer1
    is as printed.

    Source: CapRecover (arXiv 2507.22828), its tables and README.
    """

    name: str
    victim: str
    layer: str
    train: str
    test: str
    read: Literal["caption", "words"]
    start: str
    language: str
    batch: int
    lr: float
    epochs: int
    beams: int
    published: Mapping[str, float] = field(default_factory=dict)

    def config(self, language: LanguageModel) -> ModelConfig:
        """Return the network with this language model: all of a leak's places, captions alone in the loss.

        Raises:
            QFormerError, PretrainedError: the checkpoint of the Q-Former cannot be had.
        """
        # OPT reads captions behind its token for the beginning, as BLIP-2 was trained.
        return configured(ModelConfig(QFormerConfig(start=self.start), separated=True), language)

    def course(self, pictures: int) -> Course:
        """Return the training on so many pictures: the epochs of the README behind our alignment."""
        return Course(steps=max(pictures * self.epochs // self.batch, 1), batch=self.batch, lr=self.lr)

    def absent(self) -> str | None:
        """Return which weights of the attacker's are not on disk and cannot be fetched, None where all are."""
        for name in dict.fromkeys((self.start, self.language)):
            try:
                resolve(name)
            except PretrainedError as error:
                return str(error)
        return None


def as_the_authors(config: ModelConfig, course: Course) -> tuple[ModelConfig, Course]:
    """Return the scheme of the authors' code: one pooled token, what fills captions up in the loss, no alignment.

    The third of its habits, to run the victim afresh every step, is for whoever feeds it.
    """
    return replace(config, pooled=True, filling=True, rewords=False), replace(course, align=0)


@functools.lru_cache(maxsize=1)
def presets() -> Mapping[str, Preset]:
    """Return the shipped presets by name."""
    text = resources.files(__package__).joinpath("presets.json").read_text(encoding="utf-8")
    return {row["name"]: Preset(**row) for row in json.loads(text)}


def preset(name: str) -> Preset:
    """Return a shipped preset.

    Raises:
        UnknownPresetError: there is none of this name.
    """
    known = presets()
    if name not in known:
        raise UnknownPresetError(f"no preset is called {name!r}{suggest(name, known)}")
    return known[name]
