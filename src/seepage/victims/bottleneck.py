"""A bottleneck behind one layer of a victim: what is sent, what the next stage makes of it, and the file of both."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ..files import printable, write_tensors
from ..types import Shape
from .structure import first, with_first
from .victim import WeightsError

_KEY = "seepage-defense"
_SLOPE = 0.1


@dataclass(frozen=True)
class Plan:
    """What a bottleneck is built for: a row of features, how many channels are sent, how many lie within each half."""

    shape: Shape
    width: int
    hidden: int

    @property
    def channels(self) -> int:
        """How many channels a row has: the first axis of a map, the last of tokens and of a map that ends in them."""
        return self.shape[self._axis]

    @property
    def channels_last(self) -> bool:
        """Whether a map's channels are its last axis."""
        return len(self.shape) == 3 and self.shape[0] == self.shape[1] != self.shape[2]

    @property
    def sent_shape(self) -> Shape:
        """The shape of a row that is sent."""
        return tuple(self.width if axis == self._axis else side for axis, side in enumerate(self.shape))

    @property
    def _axis(self) -> int:
        return 0 if len(self.shape) == 3 and not self.channels_last else len(self.shape) - 1

    def arrange(self, features: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
        """Return maps with their channels first, tokens and vectors as they are."""
        return features.permute(0, 3, 1, 2) if self.channels_last else features

    def arrange_back(self, features: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
        """Undo `arrange`."""
        return features.permute(0, 2, 3, 1) if self.channels_last else features

    def step(self, given: int, made: int) -> nn.Module:
        """Return a linear step between so many channels: over 3x3 places of a map, at each token alone."""
        return nn.Conv2d(given, made, 3, padding=1) if len(self.shape) == 3 else nn.Linear(given, made)

    def by_channel(self, values: Float[Tensor, "c"]) -> Tensor:
        """Return a value a channel, shaped to meet arranged features."""
        return values.view(-1, 1, 1) if len(self.shape) == 3 else values


class Half(nn.Module):
    """Two linear steps, between features whose channels have `mean` and `spread` and what is sent for them."""

    mean: Tensor
    spread: Tensor

    def __init__(self, plan: Plan, given: int, made: int) -> None:
        super().__init__()
        self.plan = plan
        self.register_buffer("mean", torch.zeros(plan.channels))
        self.register_buffer("spread", torch.ones(plan.channels))
        self.steps = nn.Sequential(plan.step(given, plan.hidden), nn.LeakyReLU(_SLOPE), plan.step(plan.hidden, made))


class Encoder(Half):
    """Features "b ..." to what is sent for them, standardised by channel first."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan, plan.channels, plan.width)

    def forward(self, features: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
        plan = self.plan
        standard = (plan.arrange(features) - plan.by_channel(self.mean)) / plan.by_channel(self.spread)
        return plan.arrange_back(self.steps(standard))


class Decoder(Half):
    """What was sent to features of the layer's own shape and scale, for the rest of the victim."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan, plan.width, plan.channels)

    def forward(self, sent: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
        plan = self.plan
        standard = self.steps(plan.arrange(sent))
        return plan.arrange_back(standard * plan.by_channel(self.spread) + plan.by_channel(self.mean))


class Bottleneck(nn.Module):
    """Both halves; `mean` and `spread` of either are those of the features' channels."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.plan = plan
        self.encoder = Encoder(plan)
        self.decoder = Decoder(plan)

    def forward(self, features: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
        restored: Tensor = self.decoder(self.encoder(features))
        return restored


class Guarded(nn.Module):
    """A layer with a bottleneck behind it: `inner` is the layer, `encoder` ends what the device computes.

    Where the layer returns more than a tensor, its first one goes through the bottleneck. Whatever else the victim
    asks the layer for, the layer answers.
    """

    def __init__(self, inner: nn.Module, bottleneck: Bottleneck) -> None:
        super().__init__()
        self.inner = inner
        self.encoder = bottleneck.encoder
        self.decoder = bottleneck.decoder

    def forward(self, *given: Any, **named: Any) -> Any:
        output = self.inner(*given, **named)
        features = first(output)
        assert features is not None
        return with_first(output, self.decoder(self.encoder(features)))

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)


def inserted(model: nn.Module, layer: str, bottleneck: Bottleneck) -> nn.Module:
    """Return a model with a bottleneck behind one of its layers; the one given, whose weights it shares, stays.

    The layer goes by `LAYER.inner` in it, and what is sent is what `LAYER.encoder` gives.
    """
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    defended: nn.Module = copy.deepcopy(model, shared)
    defended.set_submodule(layer, Guarded(defended.get_submodule(layer), bottleneck))
    return defended


@dataclass(frozen=True)
class Said:
    """What the file of a trained defense says beside its weights.

    `victim` is the full name of what it defends, `weights_sha256` its weights, `layer` where, `size` the side of its
    pictures where one was asked for, `defense` how it was trained, `seen` how its pictures are remembered.
    """

    victim: str
    weights_sha256: str
    layer: str
    size: int | None
    plan: Plan
    defense: Mapping[str, Any]
    seen: tuple[str, ...]


def write(path: Path, bottleneck: Bottleneck, said: Said) -> None:
    """Write a trained defense; `path` is either whole or absent.

    Raises:
        OutputError: the file cannot be written.
    """
    tensors = {name: tensor.cpu().contiguous() for name, tensor in bottleneck.state_dict().items()}
    write_tensors(path, tensors, {_KEY: json.dumps(asdict(said))})


def read(path: Path) -> tuple[Bottleneck, Said]:
    """Read what `write` wrote.

    Raises:
        WeightsError: there is no such file, or it holds no trained defense.
    """
    if not path.is_file():
        raise WeightsError(f"no file {printable(path)}; `seepage train defense` makes one")
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(_KEY)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is no mapping
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{printable(path)} cannot be read: {' '.join(str(error).split())}") from error
    if text is None:
        raise WeightsError(f"{printable(path)} is no trained defense; expected what `seepage train defense` wrote")
    try:
        raw = json.loads(text)
        plan = Plan(tuple(raw["plan"]["shape"]), raw["plan"]["width"], raw["plan"]["hidden"])
        said = Said(**{**raw, "plan": plan, "seen": tuple(raw["seen"])})
        bottleneck = _unfilled(plan)
        bottleneck.load_state_dict(tensors, assign=True)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise WeightsError(f"{printable(path)} is damaged: {reason}") from error
    return bottleneck, said


def _unfilled(plan: Plan) -> Bottleneck:
    """Return a bottleneck without numbers: those that a file holds take their places."""
    with torch.device("meta"):
        return Bottleneck(plan)
