"""CapRecover as an attack: what a picture shows, in words or as a label, from its features alone."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import ClassVar, Literal

import torch

from ...registry import register
from ...types import (
    Access,
    Auxiliary,
    Examples,
    Knowledge,
    Leak,
    LeakHeader,
    NotRunError,
    Progress,
    Recoverer,
    Recovers,
    SeepageError,
)
from ..chores import Chore
from ..onward import Onward, beyond, way
from ..parameters import within
from . import adapter
from .adapter import Header
from .fitting import TRAIN, Course, Lessons, begun, gather, header_of, rehearsal, train
from .generation import Decode, Decoding
from .language import DEFAULT, EXTRA, LanguageModel, folder_of, load
from .model import CapRecoverModel, ModelConfig
from .qformer import QFormerConfig
from .recoverer import CapRecoverer

Read = Literal["caption", "words", "label"]
_GENTLER = 0.6
"""The rate of alignment, as a part of that of what follows."""
_LABELLED = 128
"""Leaks a step where only labels are learned."""


@register("attack", "caprecover")
@dataclass(frozen=True)
class CapRecover(adapter.FromAdapter):
    """Read features with a Q-Former and let a frozen language model say what they show (arXiv 2507.22828).

    A mapper brings features of any shape to at most 64 tokens; a Q-Former's queries read them; projected, they are a
    frozen causal language model's prompt. Queries are first aligned to sentence vectors (InfoNCE), then trained by the
    cross-entropy of captions at caption positions. `read=caption` answers with captions, `words` with the classes whose
    names the captions say, `label` with a linear read-out of the queries.

    `adapter=FILE` is what `seepage train caprecover` wrote, for one victim and some of its layers; its hash is part of
    the result. Without one a small network of `layers` blocks, `width` wide, is trained on the leaks of the attacker's
    own pictures, held in memory: `align` steps, then `steps` at rate `lr`, each without a share `hide` of the leak's
    channels and tokens. `language` is `smollm2`, a folder, a GGUF file or a hub id; an adapter knows its own, and
    another file of the same hash may be named. `decoding` is greedy, beam (of `beams`; `full` effort's) or sample (at
    `temperature`, from the likeliest tokens that make up `share`); captions have `least` to `most` tokens, and `batch`
    are written at once, on which the last digits of likelihoods may depend.

    Black-box: it sees leaks of pictures of its own, no prefix and no gradient, and asks the victim nothing while
    recovering, so a row is always `stopped`. With `through=LAYER` the leak is first run on through the victim's own
    layers to a later cut and read there, which whoever holds the suffix can do: so an adapter reads at every cut before
    those it was trained at, and says there no less.
    """

    read: Read = "caption"
    adapter: Path | None = None
    through: str = ""
    language: str = ""
    decoding: Decoding = "greedy"
    beams: int = within(5, least=1)
    temperature: float = within(0.7, least=1e-3)
    share: float = within(0.9, least=1e-6, most=1)
    least: int = 3
    most: int = within(40, least=1)
    batch: int = within(16, least=1)
    align: int = 400
    steps: int = within(700, least=1)
    lr: float = 5e-4
    width: int = within(384, least=1)
    layers: int = within(4, least=1)
    heads: int = within(6, least=1)
    queries: int = within(16, least=1)
    start: str = "fresh"
    hide: float = within(0.0, most=0.9)

    learns: ClassVar[bool] = True
    efforts: ClassVar[dict[str, dict[str, int | float | str]]] = {
        "quick": {"align": 60, "steps": 60},
        "standard": {},
        "full": {"align": 1200, "steps": 3000, "decoding": "beam"},
    }

    @property
    def access(self) -> Access:
        """Leaks of its own pictures are enough; to run one on takes the victim's layers."""
        return "white-box" if self.through else "black-box"

    @property
    def auxiliary(self) -> Auxiliary:
        """It learned from pictures with captions or labels."""
        return "public"

    @property
    def recovers(self) -> Recovers:
        """Captions, or what they name."""
        return "captions" if self.read == "caption" else "labels"

    @property
    def budget(self) -> int:
        """Recovering needs no pass."""
        return 0

    @property
    def qformer(self) -> QFormerConfig:
        """The Q-Former that is trained."""
        return QFormerConfig(self.width, self.layers, self.heads, self.queries, start=self.start)

    @property
    def course(self) -> Course:
        """How it is trained; without a language model a step is cheap, and sees more leaks."""
        wide = {"batch": _LABELLED} if self.read == "label" else {}
        return Course(align=self.align, align_lr=_GENTLER * self.lr, steps=self.steps, lr=self.lr, **wide)

    def fit(
        self,
        knowledge: Knowledge,
        generator: torch.Generator,
        *,
        workdir: Path | None = None,
        progress: Progress | None = None,
    ) -> Recoverer:
        """Read the adapter, else train on the attacker's own pictures.

        Raises:
            NotRunError: there is neither, the pictures lack captions or labels, classes are wanted and unknown, or the
                extra `caption` is not installed.
            AdapterError: the adapter cannot be read.
            LanguageError, AssetError, PretrainedError: what is trained with cannot be had.
            TrainingError: nothing could be learned.
        """
        if self._lacks_extra:
            raise NotRunError(f"caprecover needs {EXTRA}")
        if self.through:
            onward = way(knowledge, self.through)
            there = beyond(knowledge, onward)
            return Onward(self._fit(there, generator, workdir, progress), onward)
        return self._fit(knowledge, generator, workdir, progress)

    def _fit(
        self, knowledge: Knowledge, generator: torch.Generator, workdir: Path | None, progress: Progress | None
    ) -> Recoverer:
        if self.adapter is not None:
            return self._recoverer(*adapter.read(self.adapter), knowledge)
        lessons = gather(self._public(knowledge), self.read, knowledge.classes)
        if self.read != "caption" and not lessons.classes:
            raise NotRunError(f"caprecover:read={self.read} names classes, and none are known of the public pictures")
        seed = int(torch.randint(2**62, (1,), generator=generator))
        model, header = train(
            lessons,
            self.read,
            self._config(lessons),
            self._language(lessons),
            self.course,
            seed,
            folder=workdir,
            progress=progress,
        )
        return self._recoverer(model, header, knowledge)

    def load(self, path: Path, knowledge: Knowledge) -> Recoverer:
        """Return the recoverer of an adapter.

        Raises:
            AdapterError: it cannot be read.
            NotRunError: it was not trained for what is to be read.
        """
        if self.through:
            onward = way(knowledge, self.through)
            return Onward(self._recoverer(*adapter.read(path), beyond(knowledge, onward)), onward)
        return self._recoverer(*adapter.read(path), knowledge)

    def assets(self) -> tuple[str, ...]:
        """Return the language model, its adapter's too, where that is the embedded one, and the sentence encoder."""
        if self.read == "label" or self._lacks_extra:
            return ()
        known = self.language
        if not known and self.adapter is not None:
            with suppress(SeepageError):  # the audit says so where it reads it
                known = adapter.read_header(self.adapter).config.language
        return (*((DEFAULT,) if known in ("", DEFAULT) else ()), "minilm", "minilm_tokenizer")

    def writer(self) -> Path | None:
        """Return the folder of the language model, None where the read-out names classes or the model is random.

        Raises:
            AdapterError, LanguageError, AssetError, PretrainedError: the adapter or the model cannot be had.
        """
        if self.read == "label" or self._lacks_extra:
            return None
        known = "" if self.adapter is None else adapter.read_header(self.adapter).config.language
        return folder_of(self.language or known or DEFAULT)

    def places(self) -> tuple[str, ...] | None:
        """Return the layers that the adapter was trained at; run on to one of them, a leak may be of any.

        Raises:
            AdapterError: the adapter cannot be read.
        """
        return None if self.through else super().places()

    def chores(self, knowledge: Knowledge, rows: int) -> Sequence[Chore]:
        """Return the reading of `rows` made-up leaks and, without an adapter, the steps of training on as many.

        Raises:
            NotRunError: there is neither an adapter nor a picture to learn from.
            AdapterError, LanguageError, AssetError, PretrainedError: as `fit` does.
        """
        if self.through:
            knowledge = beyond(knowledge, way(knowledge, self.through))
        if self.adapter is None:
            return self._training(knowledge, rows)
        recoverer = self._recoverer(*adapter.read(self.adapter), knowledge)
        header, layer = recoverer.header, recoverer.layer
        shape = (rows, *header.layers[layer])
        leak = Leak(torch.ones(shape), LeakHeader(header.victim, header.weights_sha256, layer, ""))
        return (_reading(recoverer, leak),)

    def _training(self, knowledge: Knowledge, rows: int) -> Sequence[Chore]:
        """Return one step of each stage of training, and the reading by what is not trained yet."""
        public = self._public(knowledge)
        lessons = gather(Examples(islice(public.train, 1), ()), self.read, knowledge.classes)
        language = self._language(lessons)
        model = begun(lessons, self._config(lessons), language, 0)
        steps = rehearsal(lessons, model, language, self.course)
        recoverer = self._recoverer(copy.deepcopy(model), header_of(lessons, model, language), knowledge)
        features = lessons.features[[row % len(lessons) for row in range(rows)]]
        return *steps, _reading(recoverer, Leak(features, lessons.header))

    def _public(self, knowledge: Knowledge) -> Examples:
        if knowledge.public is None:
            raise NotRunError(
                f"caprecover learns from pictures with captions or labels: train an adapter with {TRAIN} and name it "
                "(caprecover:adapter=FILE), or let it learn a little from --public DATASET/SPLIT"
            )
        return knowledge.public

    def _language(self, lessons: Lessons) -> LanguageModel | None:
        return None if self.read == "label" else load(self.language or DEFAULT, lessons.features.device)

    def _config(self, lessons: Lessons) -> ModelConfig:
        """The network to train: with a read-out where that is what is wanted."""
        classes = len(lessons.classes or ()) if self.read == "label" else 0
        return ModelConfig(self.qformer.sized(), most_tokens=max(self.most, 2), classes=classes, hide=self.hide)

    @property
    def _lacks_extra(self) -> bool:
        wanted = ("transformers",) if self.read == "label" else ("transformers", "gguf")
        return any(importlib.util.find_spec(package) is None for package in wanted)

    def _recoverer(self, model: CapRecoverModel, header: Header, knowledge: Knowledge) -> CapRecoverer:
        how = Decode(
            self.decoding,
            self.beams,
            temperature=self.temperature,
            share=self.share,
            least=min(self.least, self.most - 1),
            most=self.most,
        )
        found = CapRecoverer(self.read, how, self.batch, self.language, model, header, knowledge, self.through)
        if self.read == "label" and model.labels is None:
            raise NotRunError("the adapter was trained without labels: it reads captions and words, not read=label")
        if self.read != "label" and not header.language_sha256:
            raise NotRunError(f"the adapter was trained on labels alone: it has read=label, not read={self.read}")
        if self.read == "words" and not found.classes:
            raise NotRunError("caprecover:read=words looks for the names of classes, and none are known of this victim")
        return found


def _reading(recoverer: CapRecoverer, leak: Leak) -> Chore:
    generators = [torch.Generator().manual_seed(row) for row in range(len(leak))]
    return Chore(lambda: recoverer.recover(leak, generators), each=1 / len(leak))
