"""The models, other than the victim, that an audit asks what or whom a picture shows."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

import torch
from torch import Tensor

from .. import victims
from ..registry import suggest
from ..schema import Judge
from ..seeding import state_sha256
from ..types import SeepageError, Shape
from ..victims.cut import cut
from ..victims.layers import boundaries, look
from ..victims.victim import Victim
from ..victims.weights import check_finite
from .asked import asks_label_judge, attack_of, metrics_of
from .request import DEFAULT_ATTACKS, DEFAULT_JUDGE, Request, RequestError

KINDS = {"label": "agreement, top1 and top5", "face": "knn_distance and rank1"}
"""The kinds of judges, and the metrics that read them."""
_REMEMBERED = 256
_BATCH = 32


class Judges:
    """The judges of one request, each loaded when it is first asked for.

    Raises:
        RequestError: a judge of no known kind, or two of one.
    """

    def __init__(self, texts: Sequence[str], victim: Callable[[], Victim], device: torch.device) -> None:
        self._named = named(texts)
        self._victim = victim
        self._device = device

    @property
    def names_label(self) -> bool:
        """Whether a label judge was asked for by name."""
        return "label" in self._named

    @cached_property
    def label(self) -> LabelJudge | str:
        """The label judge, or why there is none; the default one where none is named."""
        name = self._named.get("label")
        try:
            judge = self._load(name or DEFAULT_JUDGE)
        except SeepageError as error:
            if name is not None:
                raise
            return str(error)
        return LabelJudge(judge)

    @cached_property
    def face(self) -> FaceJudge | None:
        """The judge of identities, None where none is named."""
        text = self._named.get("face")
        if text is None:
            return None
        name, layer = split_layer(text)
        judge = self._load(name)
        return FaceJudge(judge, _embedding(judge, text) if layer is None else layer)

    def _load(self, name: str) -> Victim:
        judge = victims.load(name, device=self._device)
        check_finite(judge.model, judge.name)
        victim = self._victim()
        bare = None if victim.undefended is None else state_sha256(victim.undefended)
        if judge.weights_sha256 in (victim.weights_sha256, bare):
            raise RequestError(f"the judge {judge.name} has the victim's own weights; name another model with --judge")
        return judge


class _Judge:
    """Resizes pictures to the model's input, asks it one at a time and remembers what it said of the last ones."""

    def __init__(self, run: Callable[[Tensor], Tensor], size: Shape, device: torch.device) -> None:
        self._run = run
        self._size = size
        self._device = device
        self._said: dict[bytes, Tensor] = {}
        self._kept: tuple[Tensor, Tensor] | None = None

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Map pictures "b 3 h w" in [0, 1], of any size, to one row each, on the CPU."""
        if self._kept is not None and images is self._kept[0]:
            return self._kept[1]
        return torch.cat([self._one(image) for image in self.fitted(images)])

    def fitted(self, images: Tensor) -> Tensor:
        """Return the pictures in the size of the model's input."""
        if images.shape[2:] == self._size:
            return images
        return torch.nn.functional.interpolate(images, self._size, mode="bilinear", antialias=True)

    @torch.no_grad()
    def keep(self, images: Tensor) -> None:
        """Ask about many pictures at once; whoever asks about this very tensor again gets the same answer."""
        said = [self._run(self.fitted(batch).to(self._device)).cpu() for batch in torch.split(images, _BATCH)]
        self._kept = (images, torch.cat(said))

    def _one(self, image: Tensor) -> Tensor:
        key = hashlib.sha256(image.detach().cpu().contiguous().numpy().tobytes()).digest()
        if key not in self._said:
            if len(self._said) >= _REMEMBERED:
                self._said.clear()
            self._said[key] = self._run(image[None].to(self._device)).cpu()
        return self._said[key]


class LabelJudge(_Judge):
    """A classifier: pictures to class scores."""

    def __init__(self, victim: Victim) -> None:
        super().__init__(lambda x: victim.model(victim.normalise(x)), victim.image_shape[1:], _device(victim))
        self.record = Judge(name=victim.name, sha256=victim.weights_sha256)
        self.classes = victim.classes
        self._shape = victim.image_shape

    @cached_property
    def width(self) -> int:
        """How many classes it scores."""
        return self(torch.full((1, *self._shape), 0.5)).shape[1]

    def words(self, images: Tensor) -> list[str]:
        """Return what it says of each picture, in words, or in numbers where it has no words."""
        top = self(images).argmax(1).tolist()
        return [str(index) if self.classes is None else self.classes[index] for index in top]


class FaceJudge(_Judge):
    """A network cut at a layer: pictures to embeddings."""

    def __init__(self, victim: Victim, layer: str) -> None:
        split = cut(victim, layer)
        super().__init__(lambda x: split.prefix(x).flatten(1), victim.image_shape[1:], _device(victim))
        self.record = Judge(name=f"{victim.name}:{split.layer}", sha256=victim.weights_sha256)


def named(texts: Sequence[str]) -> Mapping[str, str]:
    """Return the judges that `[KIND=]VICTIM[:LAYER]` name, by kind; a label judge unless told.

    Raises:
        RequestError: no such kind, or two judges of one.
    """
    found: dict[str, str] = {}
    for text in texts:
        kind, equals, name = text.partition("=")
        if not equals or "/" in kind:
            kind, name = "label", text
        if kind not in KINDS:
            known = suggest(kind, KINDS)
            raise RequestError(f"--judge {text}: no metric here reads a {kind} judge{known}; label= and face= are read")
        if kind in found:
            raise RequestError(f"--judge: one {kind} judge at a time, got {found[kind]}, {name}")
        found[kind] = name
    return found


def judges_of(request: Request) -> tuple[str, ...]:
    """Return the victims that a request's judges are, without their layers, the default one included.

    Raises:
        RequestError: as `named` does.
    """
    asked = dict(named(request.judges))
    pictured = any(attack_of(request, text).recovers == "images" for text in request.attacks or DEFAULT_ATTACKS)
    if pictured and asks_label_judge(metrics_of(request, "images").values(), "images"):
        asked.setdefault("label", DEFAULT_JUDGE)
    return tuple(split_layer(text)[0] if kind == "face" else text for kind, text in asked.items())


def split_layer(text: str) -> tuple[str, str | None]:
    """Split `VICTIM[:LAYER]`: a module's function, a seed, settings and paths follow colons too."""
    name, colon, tail = text.rpartition(":")
    if not colon or not tail or any(sign in tail for sign in "@=/\\"):
        return text, None
    seed = name.endswith("@random") and tail.isdecimal()
    function = name.startswith("module/") and ":" not in name
    return (text, None) if seed or function else (name, tail)


def _embedding(judge: Victim, text: str) -> str:
    """The vector to compare people by: a classifier's last before its scores, else the network's last."""
    seen = look(judge)
    vectors = [call for call in boundaries(judge, seen) if call.shape[:1] == (math.prod(call.shape),)]
    if judge.scores:
        # A container and its last child end in the same scores.
        vectors = [call for call in vectors if call.gives != vectors[-1].gives]
    if not vectors:
        raise RequestError(f"--judge face={text} gives no one vector a picture: name the layer, face={text}:LAYER")
    return vectors[-1].label


def _device(victim: Victim) -> torch.device:
    return next((weight.device for weight in victim.model.parameters()), torch.device("cpu"))
