"""A small CapRecover from the attacker's own pictures, their leaks held in memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ... import minilm
from ...types import Examples, LeakHeader, NotRunError, Pair, Progress
from ..chores import Chore
from ..loop import Loop
from . import words
from .adapter import Header
from .draws import Drawn, draw, draw_alike
from .language import LanguageModel
from .mapper import Standard
from .model import TEXT_WIDTH, CapRecoverModel, ModelConfig, configured

_WARM = 20
TRAIN = "seepage train caprecover"


@dataclass(frozen=True)
class Course:
    """Two stages: `align` steps of `align_batch` to sentences at rate `align_lr`, then `steps` of `batch` at `lr`."""

    align: int = 400
    align_batch: int = 64
    align_lr: float = 3e-4
    steps: int = 700
    batch: int = 16
    lr: float = 5e-4


@dataclass(frozen=True)
class Lessons:
    """Leaks with what is known of their pictures, row by row: captions, never none, or labels."""

    header: LeakHeader
    features: Float[Tensor, "n ..."]
    captions: tuple[tuple[str, ...], ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...] | None

    def __len__(self) -> int:
        return len(self.features)


def gather(examples: Examples, read: str, classes: Sequence[str] | None) -> Lessons:
    """Return the attacker's own pictures that can be learned from, for `caption`, `words` or `label`.

    Labels become captions (`a photo of NAME`) where words are wanted and pictures have none.

    Raises:
        NotRunError: no picture has what is wanted, or a label is none of the classes.
    """
    rows: list[Tensor] = []
    captions: list[tuple[str, ...]] = []
    labels: list[int] = []
    header, names = None, tuple(classes) if classes else None
    for leak, pictures in examples.train:
        header, names = header or leak.header, pictures.classes or names
        for index in range(len(leak)):
            own = _captions((leak, pictures), index)
            label = -1 if pictures.labels is None else int(pictures.labels[index])
            if names and read != "caption" and label >= len(names):
                raise NotRunError(
                    f"caprecover:read={read}: a public picture has label {label}, and {len(names)} classes are named: "
                    "name the classes of its pictures (folders, or `label` in their metadata.jsonl)"
                )
            if not own and read == "words" and names and label >= 0:
                own = (words.prompt(names[label]),)
            wanted = label >= 0 if read == "label" else bool(own)
            if wanted and torch.isfinite(leak.features[index]).all():
                rows.append(leak.features[index].detach().float())
                captions.append(own)
                labels.append(label)
    if header is None or not rows:
        what = "labels" if read == "label" else "captions"
        raise NotRunError(
            f"caprecover:read={read} learns from {what}, and the public pictures have none: give it pictures with a "
            f"metadata.jsonl that names some, or an adapter that {TRAIN} wrote (caprecover:adapter=FILE)"
        )
    return Lessons(header, torch.stack(rows), tuple(captions), tuple(labels), names)


def train(
    lessons: Lessons,
    read: str,
    config: ModelConfig,
    language: LanguageModel | None,
    course: Course,
    seed: int,
    *,
    folder: Path | None = None,
    progress: Progress | None = None,
) -> tuple[CapRecoverModel, Header]:
    """Return a network trained on one layer's leaks, and its header; without a language model, for labels alone.

    Raises:
        TrainingError: it could not be trained.
        QFormerError, PretrainedError, AssetError: what it starts from cannot be had.
    """
    layer, device = lessons.header.layer, lessons.features.device
    model = begun(lessons, config, language, seed).train()
    tell = progress or (lambda done, what: None)
    said = {"seed": seed, **model.said(), "read": read, "rows": len(lessons)}
    counts = [len(own) for own in lessons.captions]
    vectors = _vectors(lessons) if course.align and language is not None else None
    if vectors is not None:
        known = vectors

        def align(step: int) -> Tensor:
            some = draw(seed, "align", step, course.align_batch, counts)
            return model.alignment_loss(layer, lessons.features[list(some.rows)], _picked(known, some).to(device))

        _loop(course.align, course.align_lr).run(
            model,
            align,
            folder=None if folder is None else folder / "align",
            header={**said, "stage": "align"},
            progress=lambda done, what: tell(done / 2, what),
        )

    def speak(step: int) -> Tensor:
        if language is None:
            rows = list(draw(seed, "speak", step, course.batch, counts).rows)
            labels = torch.tensor([lessons.labels[row] for row in rows], device=device)
            return model.label_loss(layer, lessons.features[rows], labels)
        some = draw_alike(seed, "speak", step, course.batch, counts, lambda row, one: len(lessons.captions[row][one]))
        texts = [lessons.captions[row][one] for row, one in zip(some.rows, some.captions, strict=True)]
        tokens = language.tokens(texts, config.most_tokens)
        text = None if vectors is None else _picked(vectors, some).to(device)
        return model.generation_loss(layer, lessons.features[list(some.rows)], tokens, language, text=text)

    if course.steps:
        _loop(course.steps, course.lr).run(
            model,
            speak,
            folder=None if folder is None else folder / "speak",
            header={**said, "stage": "speak"},
            progress=lambda done, what: tell(0.5 + done / 2, what),
        )
    return model.eval(), replace(
        header_of(lessons, model, language),
        aligned=vectors is not None,
        caption=_central(lessons, vectors),
        label=_commonest(lessons.labels),
        seed=seed,
        trained_on=f"{len(lessons)} of the attacker's own pictures",
    )


def begun(lessons: Lessons, config: ModelConfig, language: LanguageModel | None, seed: int) -> CapRecoverModel:
    """Return a network that has learned nothing yet but its features' moments.

    Raises:
        TrainingError: there is nothing to learn from.
        QFormerError, PretrainedError, AssetError: what it starts from cannot be had.
    """
    shape = tuple(lessons.features.shape[1:])
    model = CapRecoverModel(
        config if language is None else configured(config, language), {lessons.header.layer: shape}, seed
    )
    model.begin()
    standard = Standard(shape)
    standard.add(lessons.features)
    model.mapper(lessons.header.layer).standardise(standard)
    return model.to(lessons.features.device)


def header_of(lessons: Lessons, model: CapRecoverModel, language: LanguageModel | None) -> Header:
    """Return what an adapter of this network says of itself, nothing trained yet."""
    return Header(
        lessons.header.victim,
        lessons.header.weights_sha256,
        model.layers,
        model.config,
        "" if language is None else language.sha256,
        aligned=False,
        classes=lessons.classes,
    )


def rehearsal(
    lessons: Lessons, model: CapRecoverModel, language: LanguageModel | None, course: Course
) -> tuple[Chore, ...]:
    """Return one step of each stage as chores, on as many rows as there are, over and over."""
    layer, device = lessons.header.layer, lessons.features.device

    def rows(size: int) -> list[int]:
        return [row % len(lessons) for row in range(size)]

    def align() -> None:
        text = nn.functional.normalize(torch.ones(course.align_batch, TEXT_WIDTH, device=device), dim=1)
        torch.autograd.backward(model.alignment_loss(layer, lessons.features[rows(course.align_batch)], text))

    def speak() -> None:
        features = lessons.features[rows(course.batch)]
        if language is None:
            labels = torch.zeros(course.batch, dtype=torch.long, device=device)
            torch.autograd.backward(model.label_loss(layer, features, labels))
            return
        tokens = language.tokens([lessons.captions[row][0] for row in rows(course.batch)], model.config.most_tokens)
        torch.autograd.backward(model.generation_loss(layer, features, tokens, language))

    return Chore(align, fitting=course.align if language is not None else 0), Chore(speak, fitting=course.steps)


def _loop(steps: int, lr: float) -> Loop:
    return Loop(steps, lr, warmup=min(_WARM, steps // 5))


def _picked(vectors: Sequence[Tensor], some: Drawn) -> Float[Tensor, "b 384"]:
    return torch.stack([vectors[row][one] for row, one in zip(some.rows, some.captions, strict=True)])


def _vectors(lessons: Lessons) -> list[Float[Tensor, "k 384"]]:
    """Return the vectors of each row's captions, all computed once."""
    sizes = [len(own) for own in lessons.captions]
    flat = minilm.loaded().encode([text for own in lessons.captions for text in own])
    return list(torch.split(flat, sizes))


def _central(lessons: Lessons, vectors: Sequence[Tensor] | None) -> str:
    """Return the caption whose vector is nearest to all others' on the mean: what to say of any picture."""
    if vectors is None:
        return ""
    flat = torch.cat(list(vectors))
    texts = [text for own in lessons.captions for text in own]
    return texts[int((flat @ flat.mean(0)).argmax())]


def _commonest(labels: Iterable[int]) -> int | None:
    counts: dict[int, int] = {}
    for label in labels:
        if label >= 0:
            counts[label] = counts.get(label, 0) + 1
    return max(sorted(counts), key=lambda label: counts[label]) if counts else None


def _captions(pair: Pair, index: int) -> tuple[str, ...]:
    captions = pair[1].captions
    return () if captions is None else tuple(text for text in captions[index] if text.strip())
