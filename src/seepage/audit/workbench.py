"""The parts of one audit, loaded once a process: victim, cuts, pictures, judge, metrics."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import cached_property, lru_cache, partial

import torch
from torch import Tensor

from .. import data, pictures, seeding, victims, wire
from ..attacks import controls
from ..attacks.equipped import Spoken
from ..data.features import open_leak
from ..data.source import PictureSource
from ..defenses import Pipeline
from ..files import printable
from ..metrics.identity import IdentityMetric, needs
from ..metrics.label import TopLabels, strangers
from ..metrics.likelihood import Nll, NllGap
from ..metrics.perplexity import Perplexity
from ..metrics.retrieval import Recall
from ..metrics.sentences import CaptionMetric
from ..schema import Cut, Judge
from ..types import (
    Attack,
    Examples,
    Knowledge,
    Leak,
    Metric,
    PictureFile,
    Pictures,
    Recoverer,
    Recovers,
    SeepageError,
    SplitModel,
)
from ..victims.cut import cut, onward
from ..victims.layers import Layer, default_layers, layers
from ..victims.victim import Victim
from .asked import asks_label_judge, attack_of, attacks_of, metrics_of, places_of
from .judges import FaceJudge, Judges, LabelJudge
from .owned import afresh, kept
from .people import Gallery
from .public import unaudited
from .request import Request, RequestError
from .stored import Stored, placed

_LOADED = ("device", "victim", "source", "hashes", "_public", "mean_picture", "captioned", "resized", "manifest")


class Workbench:
    """Everything that cells of one request share. Nothing in here depends on which cell is run."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self._metrics: dict[Recovers, Mapping[str, Metric]] = {}
        self._unavailable: dict[Recovers, Mapping[str, str]] = {}
        self.fitted_defenses: dict[str, Pipeline] = {}
        self.fits: dict[tuple[Hashable, ...], Recoverer] = {}
        self._kept: dict[str, Examples] = {}

    def beside(self, request: Request) -> Workbench:
        """Return the bench of a request for the same victim and pictures, which are not loaded again."""
        other = Workbench(request)
        other.fits = self.fits
        other.__dict__ |= {name: self.__dict__[name] for name in _LOADED if name in self.__dict__}
        return other

    @cached_property
    def device(self) -> torch.device:
        """The device to run on.

        Raises:
            RequestError: torch does not know it, or it is not there.
        """
        try:
            device = torch.device(self.request.device)
            torch.empty(1, device=device)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise RequestError(f"--device {self.request.device}: {reason}; cpu always works") from error
        return device

    @cached_property
    def victim(self) -> Victim:
        """The victim, on the device."""
        return victims.load(self.request.victim, device=str(self.device), size=self.request.size)

    @cached_property
    def source(self) -> PictureSource:
        """The pictures under audit: the truth."""
        source = data.open_source(self.request.images)
        return source if self.request.limit is None else source.limit(self.request.limit)

    def require_a_picture(self) -> None:
        """Look for one picture that can be read.

        Raises:
            RequestError: there is none; the first one's reason is named.
        """
        first = ""
        for batch in data.batches(self.source, self.victim_load, 1):
            if batch.pictures is not None:
                return
            first = first or next(iter(batch.failed.values()))
        raise RequestError(f"no picture of {self.source.name} can be read; the first: {first}")

    @cached_property
    def hashes(self) -> tuple[str, ...]:
        """The SHA-256 of each picture's file."""
        return tuple(entry.file_sha256 for entry in self.source.entries)

    @cached_property
    def layers(self) -> tuple[str, ...]:
        """The cuts to audit, in the order asked for; unless told, the usual ones and those an attack is made for."""
        if self.request.layers:
            return tuple(dict.fromkeys(self.request.layers))
        usual = default_layers(self.victim)
        more = {place for text in self.request.attacks for place in places_of(self.attack(text))} - set(usual)
        rows = [row.name for row in layers(self.victim, every=True)] if more else []
        return tuple(sorted({*usual, *(more & set(rows))}, key=rows.index)) if more & set(rows) else usual

    @cached_property
    def _boundaries(self) -> Mapping[str, Layer]:
        rows = {row.name: row for row in layers(self.victim)}
        if any(name not in rows for name in self.layers):
            rows = {row.name: row for row in layers(self.victim, every=True)}
        return rows

    def split(self, layer: str) -> SplitModel:
        """The victim cut at `layer`."""
        return _split(self, layer)

    def cut(self, layer: str) -> Cut:
        """Where that cut lies."""
        self.split(layer)  # refuses a cut that is unknown or bypassed, by name
        row = self._boundaries[layer]
        return Cut(index=row.index, shape=row.shape, macs_before=row.macs_before, macs_after=row.macs_after)

    def attack(self, text: str) -> Attack:
        """Build an attack at the request's effort.

        Raises:
            SeepageError: no such attack or parameter, or a value that it cannot have.
        """
        return attack_of(self.request, text)

    @cached_property
    def attacks(self) -> tuple[str, ...]:
        """The attacks to run, each with all its parameters."""
        return attacks_of(self.request)

    @cached_property
    def recovered(self) -> tuple[Recovers, ...]:
        """What the attacks to run recover."""
        return tuple(dict.fromkeys(self.attack(text).recovers for text in self.attacks))

    def metrics(self, recovers: Recovers) -> Mapping[str, Metric]:
        """The metrics asked of a cell whose attack `recovers` this, by key, those that cannot be had here included."""
        if recovers not in self._metrics:
            self._metrics[recovers] = metrics_of(self.request, recovers)
        return self._metrics[recovers]

    @property
    def all_metrics(self) -> Mapping[str, Metric]:
        """The metrics asked of any cell."""
        return {key: metric for recovers in self.recovered for key, metric in self.metrics(recovers).items()}

    def unavailable(self, recovers: Recovers) -> Mapping[str, str]:
        """Why metrics of such a cell cannot be had here, by key."""
        if recovers not in self._unavailable:
            self._unavailable[recovers] = self._lacking(recovers)
        return self._unavailable[recovers]

    def _lacking(self, recovers: Recovers) -> dict[str, str]:
        reasons = {key: self._lack(metric, recovers) for key, metric in self.metrics(recovers).items()}
        return {key: reason for key, reason in reasons.items() if reason is not None}

    def _lack(self, metric: Metric, recovers: Recovers) -> str | None:
        reason = metric.unavailable(self.victim.image_shape)
        if reason is not None:
            return reason
        if isinstance(metric, IdentityMetric):
            return self._unidentified(metric)
        if isinstance(metric, Perplexity):
            return self._own_words(metric)
        if isinstance(metric, CaptionMetric | Recall):
            return metric.lacks(self.captioned.captions or ())
        if isinstance(metric, Nll) and "captions" not in self.source.known:
            return "none of the pictures has a reference caption"
        if isinstance(metric, NllGap) and len(self.source) < 2:
            return "there is no other picture whose leak to compare with"
        if isinstance(metric, TopLabels) and "label" not in self.source.known:
            return "none of the pictures has a label"
        if asks_label_judge([metric], recovers):
            judge = self._judges.label
            if isinstance(judge, str):
                return judge
            if isinstance(metric, TopLabels):
                return strangers(self.source.classes, judge.classes, judge.width)
        return None

    def _own_words(self, metric: Perplexity) -> str | None:
        for text in self.attacks:
            attack = self.attack(text)
            try:
                folder = attack.writer() if isinstance(attack, Spoken) and attack.recovers == "captions" else None
            except SeepageError:
                continue  # its cell will fail with this reason
            if folder is not None and metric.is_of(folder):
                name, model = text.partition(":")[0], printable(metric.model or "")
                return f"perplexity: {model} is the language model that writes {name}'s captions: name another"
        return None

    @cached_property
    def captioned(self) -> Pictures:
        """The reference captions of all pictures under audit, without their pixels: what words are weighed by."""
        entries = self.source.entries
        captions = tuple(entry.captions for entry in entries)
        return Pictures(torch.empty(len(entries), 3, 0, 0), tuple(entry.id for entry in entries), captions=captions)

    def _unidentified(self, metric: IdentityMetric) -> str | None:
        if self.gallery is None or self._judges.face is None:
            return f"it needs {needs(judge=self._judges.face is None, gallery=self.gallery is None)}"
        return self.gallery.unavailable(metric.least_people)

    @cached_property
    def _judges(self) -> Judges:
        return Judges(self.request.judges, lambda: self.victim, self.device)

    def require_use_of_judges(self) -> None:
        """Refuse a judge that nobody would ask.

        Raises:
            RequestError: a judge is named that no metric of any cell reads.
        """
        if self._judges.face is not None and not any(isinstance(m, IdentityMetric) for m in self.all_metrics.values()):
            raise RequestError("--judge face= is read by knn_distance and rank1 alone: add --gallery, which they need")
        pictured = "images" in self.recovered
        if self._judges.names_label and not (pictured and asks_label_judge(self.metrics("images").values(), "images")):
            raise RequestError("a label --judge is read by agreement, top1 and top5 alone: add --metric agreement")

    def judges(self, recovers: Recovers) -> dict[str, Judge]:
        """The judges of a cell whose attack `recovers` this, for the spec."""
        found, judge = {}, self.judge(recovers)
        if judge is not None:
            found["label"] = judge.record
        if recovers == "images" and self.face is not None:
            found["face"] = self.face.record
        return found

    def judge(self, recovers: Recovers) -> LabelJudge | None:
        """The label judge, where a metric of such a cell asks it: pictures in [0, 1] of any size to class scores."""
        if not asks_label_judge(self.metrics(recovers).values(), recovers) or isinstance(self._judges.label, str):
            return None
        return self._judges.label

    @cached_property
    def face(self) -> FaceJudge | None:
        """The judge of identities, where a metric here asks it: pictures in [0, 1] of any size to embeddings."""
        if "images" not in self.recovered:
            return None
        asking = [key for key, metric in self.metrics("images").items() if isinstance(metric, IdentityMetric)]
        return self._judges.face if any(key not in self.unavailable("images") for key in asking) else None

    @cached_property
    def gallery(self) -> Gallery | None:
        """Other pictures of the people under audit, where they are named; those under audit left out by hash."""
        if self.request.gallery is None:
            return None
        return Gallery(self.source, data.open_source(self.request.gallery), self.victim_load, self.request.seed)

    @cached_property
    def gallery_pictures(self) -> Pictures | None:
        """The gallery as metrics take it, where one asks for it; loading it computes its embeddings."""
        return None if self.gallery is None or self.face is None else self.gallery.pictures(self.face)

    @property
    def public(self) -> PictureSource | None:
        """The pictures the attacker owns, those under audit left out by hash."""
        return self._public[0]

    @property
    def left_out(self) -> str:
        """A sentence on those; empty where there is none."""
        return self._public[1]

    @cached_property
    def _public(self) -> tuple[PictureSource | None, str]:
        return (None, "") if self.request.public is None else unaudited(self.request.public, frozenset(self.hashes))

    @cached_property
    def mean_picture(self) -> Tensor:
        """The null control that needs nothing of the truth: the mean of the public, else of synthetic pictures."""
        shape = self.victim.image_shape
        if self.public is None:
            return controls.mean_picture(shape, seeding.generator(self.request.seed, "control", "mean_picture"))
        total, count = torch.zeros(shape), 0
        for batch in data.batches(self.public, self.victim_load, 32):
            if batch.pictures is not None:
                total += batch.pictures.images.sum(0)
                count += len(batch.pictures)
        if count == 0:
            raise RequestError(f"--public {self.request.public}: no picture of it can be read")
        return total / count

    @cached_property
    def resized(self) -> str:
        """A sentence on the pictures that are not of the victim's input size; empty where all are."""
        sizes = [pictures.picture_size(entry.path) for entry in self.source.entries]
        height, width = self.victim.image_shape[1:]
        count = sum(size not in (None, (height, width)) for size in sizes)
        if count == 0:
            return ""
        return (
            f"{count} of {len(sizes)} pictures are not of {height}x{width} pixels and are prepared as the victim does: "
            f"{self.victim.preprocessing}"
        )

    def victim_load(self, file: PictureFile) -> Tensor:
        """Read a picture as the victim does, whatever the cut."""
        return self.victim.picture(pictures.read_picture(file))

    def knowledge(self, split: SplitModel, query: Callable[[Tensor], Leak] | None = None) -> Knowledge:
        """What the attacker knows: the prefix, queries, the public pictures, the classes; never the truth.

        `query` gives the leaks that he learns from; those of the cut, undefended, unless told.
        """
        public = None
        if self.public is not None and query is not None:
            public = afresh(self.public, query, split.load)
        elif self.public is not None:
            if split.layer not in self._kept:
                self._kept[split.layer] = kept(self.public, split, self._received)
            public = self._kept[split.layer]
        query = query or (lambda images: self.received(split, images))
        further = partial(onward, self.victim, split.layer)
        return Knowledge(split.image_shape, split.prefix, query, None, public, self.victim.classes, further)

    def sent(self, split: SplitModel, images: Tensor) -> Leak:
        """What crosses the split, in the wire's format.

        One picture at a time: a row's bits, which seed the attack, must not depend on its batch.
        """
        rows = [split.leak(image[None]) for image in images]
        leak = rows[0].with_features(torch.cat([row.features for row in rows]))
        return wire.encode(leak, self.request.wire)

    def _received(self, leak: Leak) -> Leak:
        """What whoever holds the leak reads of these features."""
        return wire.decode(wire.encode(leak, self.request.wire))

    def received(self, split: SplitModel, images: Tensor) -> Leak:
        """What whoever holds the leak reads from it."""
        return wire.decode(self.sent(split, images))

    @cached_property
    def leak_sha256(self) -> str | None:
        """The hash of the stored dump under audit, where one is."""
        return None if self.request.leak is None else pictures.file_sha256(self.request.leak)

    @cached_property
    def stored(self) -> Stored | None:
        """The stored dump under audit, where one is.

        Raises:
            SeepageError: it is no leak of this cut, or not of these pictures.
        """
        path = self.request.leak
        if path is None:
            return None
        leak = open_leak(path, self.split(self.layers[0]))
        return Stored(leak, placed(leak, path, self.source, self.victim_load, self.request.sends))

    def at_hand(self, index: int) -> bool:
        """Return whether there is a leak of the picture at `index`: of every one, unless a dump lacks its row."""
        return self.stored is None or index in self.stored.rows

    def received_rows(self, split: SplitModel, indices: Sequence[int], images: Tensor) -> Leak:
        """What whoever holds the leak of these pictures reads: of a stored dump its rows, on the device."""
        if self.stored is None:
            return self.received(split, images)
        return wire.decode(self.stored.read(self.source, indices, 0, self.device))

    @cached_property
    def defenses(self) -> tuple[str, ...]:
        """The defenses to attack: those asked for, else those that the stored dump says it carries."""
        return self.request.defenses or (() if self.stored is None else self.stored.leak.header.defenses)

    @property
    def wire(self) -> str:
        """The number format on the way: the dump's own where one is scored."""
        return self.request.wire if self.stored is None else self.stored.leak.header.wire

    @cached_property
    def manifest(self) -> str:
        """The hash of the data: the pictures' manifest and, where one is scored, the dump."""
        own = self.source.manifest_sha256()
        if self.leak_sha256 is None:
            return own
        return hashlib.sha256(f"{own}{self.leak_sha256}".encode()).hexdigest()


@lru_cache(maxsize=8)
def _split(bench: Workbench, layer: str) -> SplitModel:
    return cut(bench.victim, layer)
