"""Training of CapRecover: one Q-Former for several layers, aligned to sentences, then taught to speak."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .. import seeding
from ..attacks.caprecover.adapter import Header, Seen
from ..attacks.caprecover.attack import CapRecover
from ..attacks.caprecover.draws import draw, draw_alike
from ..attacks.caprecover.fitting import Course
from ..attacks.caprecover.language import DEFAULT, LanguageModel, folder_of, load
from ..attacks.caprecover.mapper import Standard
from ..attacks.caprecover.model import CapRecoverModel, ModelConfig, configured
from ..attacks.caprecover.presets import Preset, as_the_authors
from ..attacks.loop import Loop
from ..metrics.constants import best_caption, commonest
from ..types import Progress
from .begun import Begun
from .captioned import Captioned, Sentences
from .material import LEAST, Material, MaterialError
from .outcome import Outcome, percent
from .stages import Stage, Watched
from .train_labels import require_same_classes

_WATCHED, _SCORED = 32, 256
"""How many held-out pictures are asked on the way, and at the end."""

LoopOf = Callable[[int, float], Loop]
"""Steps and rate to a loop."""


@dataclass(frozen=True)
class Scheme:
    """How CapRecover is trained: by the attack's own parameters, or by a preset's; `authors` is their code's scheme.

    With `begun` the network is an adapter's and goes on from its weights.
    """

    attack: CapRecover
    preset: Preset | None = None
    authors: bool = False
    begun: Begun | None = None

    @property
    def language(self) -> str:
        """The language model's name."""
        known = self.preset.language if self.preset is not None else DEFAULT
        if self.begun is not None:
            known = self.begun.header.config.language or known
        return self.attack.language or known

    def require(self) -> None:
        """Refuse what cannot be had, before any work: it is asked for again when it is used.

        Raises:
            QFormerError, PretrainedError: what the Q-Former starts from, or its sizes.
            LanguageError, AssetError, PretrainedError, GgufError: the language model.
        """
        if self.preset is None and self.begun is None:
            self.attack.qformer.sized()
        if self.attack.read != "label":
            folder_of(self.language)

    def course(self, pictures: int, steps: int | None) -> Course:
        """Return the stages for so many pictures, `steps` of the second where asked for; a preset aligns no longer."""
        course = self.attack.course
        if self.preset is not None:
            course = self.preset.course(pictures)
            course = replace(course, align=min(course.align, course.steps if steps is None else steps))
        if steps is not None:
            course = replace(course, steps=steps)
        return replace(course, align=0) if self.authors else course

    def config(self, language: LanguageModel | None, classes: int) -> ModelConfig:
        """Return the network.

        Raises:
            QFormerError, PretrainedError: what it starts from cannot be had.
        """
        if self.begun is not None:
            return self.begun.config(classes, self.attack.hide)
        if self.preset is not None and language is not None:
            config = replace(self.preset.config(language), classes=classes, hide=self.attack.hide)
        else:
            attack = self.attack
            qformer = attack.qformer.sized()
            config = ModelConfig(qformer, most_tokens=max(attack.most, 2), classes=classes, hide=attack.hide)
            config = config if language is None else configured(config, language)
        return as_the_authors(config, Course())[0] if self.authors else config


def train_caprecover(
    scheme: Scheme,
    material: Material,
    steps: int | None,
    loop_of: LoopOf,
    header: Mapping[str, object],
    folder: Path,
    advance: Callable[[str], Progress],
    dtype: torch.dtype = torch.float32,
    compiled: bool = False,
) -> tuple[CapRecoverModel, Header, Outcome]:
    """Return a network trained at all of the material's layers, what its file is to say, and how it does.

    First `align` steps of InfoNCE between pooled queries and the captions' sentence vectors, computed once; then
    `steps` of the captions' cross-entropy under the frozen language model and, where pictures have labels, of a
    read-out's. A step draws one layer, pictures, one caption of each and, where mirrored features were kept, their
    mirror images. Pictures without captions go by `a photo of NAME`, their class; with `read=label` only labels are
    learned, and no language model is asked. Nothing is chosen by the held-out loss: the weights are those of the last
    step. `compiled` has torch.compile make the language model's part of a step faster.

    Raises:
        AdapterError: what it begins as speaks through another language model, or knows the held-out pictures.
        MaterialError: pictures have neither captions nor labels.
        LanguageError, AssetError, PretrainedError, QFormerError: what is trained with cannot be had.
        TrainingError, CheckpointError: as `Loop.run` does.
    """
    require_same_classes(material)
    mute = scheme.attack.read == "label"
    train, select = (Captioned.of(part, labelled=mute) for part in (material.train, material.select))
    if mute and not train.classes:
        raise MaterialError(
            f"none of the pictures of {material.train.source.name} has a label, which read=label learns"
        )
    if not train.spoken:
        select = select.within(train.classes)
    if not train.rows or len(select.rows) < LEAST or bool(train.spoken) != bool(select.spoken):
        part = material.train if not train.rows else material.select
        raise MaterialError(
            f"too few pictures of {part.source.name} have captions or labels of named classes, which caprecover learns "
            "from: name them in its metadata.jsonl (`captions`, `label`)"
        )
    seed, device = int(str(header["seed"])), next(iter(material.splits.values())).device
    language = load(scheme.language, device, dtype) if train.spoken else None
    if scheme.begun is not None:
        scheme.begun.require(language, select)
    model = _network(scheme, material, train, language, seed).to(device)
    whole = {**header, "language_sha256": "" if language is None else language.sha256, **model.said()}
    course = scheme.course(len(train.rows), steps)
    course = course if language is not None else replace(course, align=0)
    vectors = None
    if course.align:
        vectors, held = (
            Sentences.of(part, folder / f"{name}.safetensors", advance("sentences"))
            for part, name in ((train, "train"), (select, "select"))
        )
    run = _Training(model, train, select, language, course, seed, vectors)
    stages: list[Stage] = []
    if vectors is not None:
        stages.append(run.align(loop_of(course.align, course.align_lr), held, whole, folder, advance("align")))
    with language.compiled() if compiled and language is not None else nullcontext():
        stages.append(run.speak(loop_of(course.steps, course.lr), whole, folder, advance("speak")))
    said = _header(material, train, select, model, language, seed, course, scheme.begun)
    rows, scores = run.rows(said.label)
    outcome = Outcome(
        tuple(stages), _title(said), ("features", "nats a token", "top-1", "pictures"), rows, (train.part, select.part)
    )
    return model, replace(said, scores=scores), outcome


def _network(
    scheme: Scheme, material: Material, train: Captioned, language: LanguageModel | None, seed: int
) -> CapRecoverModel:
    config = scheme.config(language, train.classes)
    shapes = {layer: train.part.features[layer].shape for layer in material.splits}
    model = CapRecoverModel(config, shapes, seed)
    if scheme.begun is None:
        model.begin()
    else:
        scheme.begun.give(model, material.train.source.classes)
    for layer, shape in shapes.items():
        standard = Standard(shape)
        for features in train.part.batches(layer):
            standard.add(features)
        model.mapper(layer).standardise(standard)
    return model


@dataclass(frozen=True)
class _Training:
    """The two stages, and what held-out pictures say."""

    model: CapRecoverModel
    train: Captioned
    select: Captioned
    language: LanguageModel | None
    course: Course
    seed: int
    vectors: Sentences | None

    def align(
        self, loop: Loop, held: Sentences, header: Mapping[str, object], folder: Path, progress: Progress
    ) -> Stage:
        """Bring queries to the vectors of their pictures' captions."""
        tests = self.select.part.few(_WATCHED)
        sentences = held[[self.select.first(row) for row in tests]]

        def loss(number: int) -> Tensor:
            layer, _, picked, features = self._draw("align", number, self.course.align_batch)
            text = self._text(picked)
            assert text is not None  # there is no such stage without
            return self.model.alignment_loss(layer, features, text)

        def test() -> dict[str, float]:
            own = [
                float(self.model.alignment_loss(layer, self._held(layer, tests), sentences.to(self._device)))
                for layer in self.model.layers
            ]
            other = [
                float(self.model.alignment_loss(layer, self._held(layer, tests), sentences.roll(1, 0).to(self._device)))
                for layer in self.model.layers
            ]
            return {"held-out": _mean(own), "shuffled": _mean(other)}

        watched = Watched("align", "InfoNCE to sentence vectors, nats", loop, folder / "align")
        return watched.run(self.model, loss, test, {**header, "stage": "align"}, progress)

    def speak(self, loop: Loop, header: Mapping[str, object], folder: Path, progress: Progress) -> Stage:
        """Teach the network to make the language model say the captions, and to tell labels."""

        def loss(number: int) -> Tensor:
            layer, rows, picked, features = self._draw("speak", number, self.course.batch)
            parts = []
            if self.language is not None:
                tokens = self.language.tokens([self.train.texts[one] for one in picked], self.model.config.most_tokens)
                text = self._text(picked)
                parts.append(self.model.generation_loss(layer, features, tokens, self.language, text=text))
            labels = torch.tensor([self.train.label(row) for row in rows], device=features.device)
            if self.model.labels is not None and (labels >= 0).any():
                parts.append(self.model.label_loss(layer, features[labels >= 0], labels[labels >= 0]))
            return torch.stack(parts).sum()

        def test() -> dict[str, float]:
            found = [self.surprises(layer, self.select.part.few(_WATCHED)) for layer in self.model.layers]
            return {name: _mean([one[name] for one in found]) for name in found[0]}

        more = " and ".join(
            what
            for what, there in (("alignment", self.vectors is not None), ("labels", self.model.labels is not None))
            if there
        )
        unit = "nats a token of captions" if self.language is not None else "nats a label"
        unit += f"; the training loss adds {more}" if more and self.language is not None else ""
        watched = Watched("speak", unit, loop, folder / "speak")
        return watched.run(self.model, loss, test, {**header, "stage": "speak"}, progress)

    @torch.no_grad()
    def surprises(self, layer: str, rows: tuple[int, ...]) -> dict[str, float]:
        """Return the nats a token (a label, without captions) of held-out pictures, and of the null controls."""
        return {
            "held-out": self._mean_surprise(layer, rows, rows),
            "shuffled": self._mean_surprise(layer, self.select.deranged(rows), rows),
            "no features": self._mean_surprise(layer, None, rows),
        }

    @torch.no_grad()
    def rows(self, constant: int | None) -> tuple[tuple[tuple[str, ...], ...], dict[str, float]]:
        """Return a table of held-out pictures beside null controls, layer by layer, and its numbers by name."""
        table: list[tuple[str, ...]] = []
        scores: dict[str, float] = {}
        rows = self.select.part.few(_SCORED)
        known = torch.tensor([self.select.label(row) for row in rows])
        has = known >= 0
        count = str(len(rows))
        for layer in self.model.layers:
            found = self.surprises(layer, rows)
            top1: dict[str, str] = {}
            if self.model.labels is not None and has.any():
                views = {"held-out": rows, "shuffled": self.select.deranged(rows)}
                for name, shown in views.items():
                    said = torch.cat([self._labels(layer, some) for some in self._batches(shown)])
                    scores[f"{layer}/top1/{name}"] = share = float((said == known)[has].float().mean())
                    top1[name] = percent(share)
            for name, words in _WORDS.items():
                scores[f"{layer}/nll/{name}"] = found[name]
                table.append((f"{layer}: {words}", f"{found[name]:.3f}", top1.get(name, "–"), count))
        if constant is not None and has.any():
            share = float((known[has] == constant).float().mean())
            table.append(("control: the commonest label", "–", percent(share), count))
        return tuple(table), scores

    @cached_property
    def _places(self) -> tuple[list[tuple[int, int]], list[int]]:
        """Where each picture's texts lie, and how many they are."""
        places = [self.train.places.get(row, (0, 1)) for row in self.train.rows]
        return places, [count for _, count in places]

    @property
    def _device(self) -> torch.device:
        return next(self.model.parameters()).device

    def _draw(self, stage: str, number: int, size: int) -> tuple[str, list[int], list[int], Tensor]:
        """Return a layer, pictures, the number of one caption of each, and their features: the same for a number."""
        names = tuple(self.model.layers)
        generator = seeding.generator(self.seed, "fit", stage, "layer", number)
        layer = names[int(torch.randint(len(names), (1,), generator=generator))]
        places, counts = self._places
        if stage == "speak" and self.language is not None:
            length = lambda row, one: len(self.train.texts[places[row][0] + one])  # noqa: E731
            some = draw_alike(self.seed, stage, number, size, counts, length)
        else:
            some = draw(self.seed, stage, number, size, counts)
        rows = [self.train.rows[place] for place in some.rows]
        picked = [places[place][0] + one for place, one in zip(some.rows, some.captions, strict=True)]
        features = self.train.part.features[layer]
        return layer, rows, picked, features.read(rows, features.ways(some.shares)).to(self._device)

    def _held(self, layer: str, rows: tuple[int, ...]) -> Float[Tensor, "b ..."]:
        return self.select.part.features[layer].read(rows).to(self._device)

    def _text(self, picked: list[int]) -> Float[Tensor, "b 384"] | None:
        return None if self.vectors is None else self.vectors[picked].to(self._device)

    def _labels(self, layer: str, rows: tuple[int, ...]) -> Int[Tensor, "b"]:
        return self.model.scores(self.model.queries(layer, self._held(layer, rows))).argmax(1).cpu()

    def _batches(self, rows: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
        for start in range(0, len(rows), self.course.batch):
            yield rows[start : start + self.course.batch]

    def _mean_surprise(self, layer: str, shown: tuple[int, ...] | None, rows: tuple[int, ...]) -> float:
        """Return the mean surprise at what is known of `rows`, from the features of `shown`, or from none."""
        total, count = 0.0, 0
        for some, seen in zip(self._batches(rows), self._batches(rows if shown is None else shown), strict=True):
            part = self.model.nothing(layer, len(some)) if shown is None else self._held(layer, seen)
            if self.language is None:
                labels = torch.tensor([self.select.label(row) for row in some], device=part.device)
                total += float(self.model.label_loss(layer, part, labels)) * len(some)
                count += len(some)
                continue
            texts = [self.select.texts[self.select.first(row)] for row in some]
            tokens = self.language.tokens(texts, self.model.config.most_tokens)
            prompt = self.model.prompt(self.model.queries(layer, part), self.language)
            total -= float(self.language.log_probabilities(prompt, tokens).sum())
            count += int(tokens.lengths.sum())
        return total / max(count, 1)


_WORDS = {
    "held-out": "its own",
    "shuffled": "control: another picture's",
    "no features": "control: none",
}


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _header(
    material: Material,
    train: Captioned,
    select: Captioned,
    model: CapRecoverModel,
    language: LanguageModel | None,
    seed: int,
    course: Course,
    begun: Begun | None,
) -> Header:
    split = next(iter(material.splits.values()))
    sources = material.train.source, material.select.source
    seen = [
        Seen.of(source.manifest_sha256(), part.part.hashes())
        for source, part in zip(sources, (train, select), strict=True)
    ]
    told = f"{len(train.rows)} pictures of {sources[0].name}, {course.align} + {course.steps} steps"
    if begun is not None:
        seen = list(begun.seen(*seen))
        told += f", begun as an adapter of {begun.header.victim} ({begun.header.trained_on})"
    return Header(
        split.name,
        split.weights_sha256,
        model.layers,
        model.config,
        "" if language is None else language.sha256,
        aligned=course.align > 0 or (begun is not None and begun.header.aligned),
        caption="" if language is None else best_caption(train.captions),
        label=commonest([label if label >= 0 else None for label in map(train.label, train.rows)]),
        classes=material.train.source.classes,
        seed=seed,
        trained_on=told,
        train=seen[0],
        select=seen[1],
    )


def _title(header: Header) -> str:
    constant = f"; the best constant caption: {header.caption!r}" if header.caption else ""
    return f"Held-out pictures{constant}"
