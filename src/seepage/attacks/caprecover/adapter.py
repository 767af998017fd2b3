"""An adapter: a trained CapRecover in one file, with all that says what it may be used on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import UInt8
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ...files import printable, write_tensors
from ...pictures import REMEMBERED, recalled, remembered
from ...types import LeakHeader, SeepageError, Shape
from .model import CapRecoverModel, ModelConfig

_SHIPPED = files(__package__) / "adapters"
_KEY, _FORMAT = "seepage-caprecover", 1
_HASHES = "{}/hashes"
_SCALE = "scale/"
_STEPS = 127
Storage = Literal["fp32", "fp16", "int8"]


class AdapterError(SeepageError):
    """A file that is no adapter, a damaged one, or one for another victim, layer, shape or configuration."""


@dataclass(frozen=True)
class Seen:
    """Pictures that were learned from or selected on: their manifest, how many, and where each file's hash begins."""

    manifest_sha256: str = ""
    hashes: frozenset[str] = frozenset()

    @staticmethod
    def of(manifest_sha256: str, hashes: Iterable[str]) -> Seen:
        """Remember pictures by their SHA-256."""
        return Seen(manifest_sha256, remembered(hashes))

    def among(self, hashes: Iterable[str]) -> tuple[str, ...]:
        """Return those of the SHA-256 that are remembered."""
        return recalled(hashes, self.hashes)


@dataclass(frozen=True)
class Header:
    """What an adapter says of itself.

    `layers` are the cuts with one sample's shape at each. `aligned` is False where queries were never aligned to
    sentences, so that candidates cannot be ranked. `caption` and `label` are the constants that score best on the
    training split, `classes` the names of the labels, `trained_on` a line for a reader, `scores` numbers measured.
    """

    victim: str
    weights_sha256: str
    layers: Mapping[str, Shape]
    config: ModelConfig
    language_sha256: str
    aligned: bool = True
    caption: str = ""
    label: int | None = None
    classes: tuple[str, ...] | None = None
    seed: int = 0
    trained_on: str = ""
    scores: Mapping[str, float] = field(default_factory=dict)
    train: Seen = field(default_factory=Seen)
    select: Seen = field(default_factory=Seen)

    def require(self, leak: LeakHeader, shape: Shape) -> None:
        """Refuse a leak that the adapter was not trained for.

        Raises:
            AdapterError: it is of another victim, of other weights, another layer or another shape.
        """
        if (leak.victim, leak.weights_sha256) != (self.victim, self.weights_sha256):
            raise AdapterError(
                f"the adapter was trained on {self.victim} (weights {self.weights_sha256[:12]}), the leak is of "
                f"{leak.victim} (weights {leak.weights_sha256[:12]}); train one with seepage train caprecover"
            )
        if leak.layer not in self.layers:
            raise AdapterError(f"the adapter was trained at {', '.join(self.layers)}, the leak is of {leak.layer}")
        if tuple(shape) != tuple(self.layers[leak.layer]):
            raise AdapterError(
                f"a row of the leak at {leak.layer} has shape {tuple(shape)}, the adapter was trained on "
                f"{tuple(self.layers[leak.layer])}"
            )

    def seen(self, hashes: Iterable[str]) -> tuple[str, ...]:
        """Return those SHA-256 of picture files that were learned from or selected on."""
        given = tuple(hashes)
        return tuple(dict.fromkeys((*self.train.among(given), *self.select.among(given))))


def write(path: Path, model: CapRecoverModel, header: Header, storage: Storage = "fp16") -> None:
    """Write an adapter; `path` is either whole or absent.

    `fp32` keeps all that training holds, `fp16` half, `int8` matrices at 255 steps of one scale an output row and all
    else at fp16; the moments of the features stay as they are.

    Raises:
        AdapterError: a weight is not finite, or larger than fp16 goes.
        OutputError: the file cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        plain = value.detach().cpu().float()
        if not torch.isfinite(plain).all() or (_halved(name, storage) and plain.half().isinf().any()):
            raise AdapterError(f"the weight {name} has values that are not finite, or too large for {storage}")
        if not _halved(name, storage):
            tensors[name] = plain.contiguous().clone()
        elif storage == "int8" and plain.ndim > 1:
            flat = plain.flatten(1)
            scale = flat.abs().amax(1).clamp_min(torch.finfo(torch.float32).tiny * _STEPS) / _STEPS
            tensors[name] = (flat / scale[:, None]).round().to(torch.int8).view_as(plain).contiguous()
            tensors[_SCALE + name] = scale
        else:
            tensors[name] = plain.half().contiguous()
    for part in ("train", "select"):
        tensors[_HASHES.format(part)] = _packed(getattr(header, part).hashes)
    write_tensors(path, tensors, {_KEY: json.dumps(_said(header), sort_keys=True)})


def read(path: Path) -> tuple[CapRecoverModel, Header]:
    """Return a trained network, in eval mode, and what its file says of itself.

    Raises:
        AdapterError: the file is absent, truncated or no adapter, its weights are of another configuration, or one is
            not finite.
    """
    tensors, said = _read(path)
    try:
        header = _header(said, tensors)
        model = CapRecoverModel(header.config, header.layers)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise AdapterError(f"{printable(path)} has a header that this version cannot read: {error}") from error
    state = {}
    for name, value in tensors.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise AdapterError(f"{printable(path)}: the weight {name} holds NaN or infinity")
        if name.startswith(_SCALE) or name.endswith("/hashes"):
            continue
        if value.dtype == torch.int8 and _SCALE + name in tensors:
            scale = tensors[_SCALE + name]
            value = value.float() * scale.view(-1, *[1] * (value.ndim - 1))
        state[name] = value.float()
    own = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    given = {name: tuple(value.shape) for name, value in state.items()}
    if own != given:
        other = sorted(name for name in {*own, *given} if own.get(name) != given.get(name))
        raise AdapterError(
            f"{printable(path)} holds weights of another configuration than its header's: {len(other)} differ, first "
            f"{other[0]} ({given.get(other[0])}, expected {own.get(other[0])})"
        )
    model.load_state_dict(state)
    return model.eval().requires_grad_(False), header


@lru_cache(maxsize=1)
def shipped() -> Mapping[str, Header]:
    """Return what the adapters that come with the package say of themselves, by the name to give, `zoo/NAME`."""
    found = sorted(Path(str(_SHIPPED)).glob("*.safetensors"))
    return {f"zoo/{path.stem}": read_header(path) for path in found}


def ready_for(victim: str) -> tuple[str, ...]:
    """Return the attack that ships trained for a victim, with or without the name of its weights; none, or one.

    It reads at the last of its adapter's cuts, so that it has something to say at every one before; of several adapters
    it takes the one for fewest cuts, which has learned most of that one.
    """
    own = {name: one for name, one in shipped().items() if f"{one.victim}@".startswith(f"{victim}@")}
    if not own:
        return ()
    name = min(own, key=lambda name: len(own[name].layers))
    return (f"caprecover:adapter={name},through={list(own[name].layers)[-1]}",)


def by_depth(victim: str) -> Mapping[str, tuple[str, ...]]:
    """Return the attacks that ship trained for several cuts of a victim, each read where it is, with those cuts."""
    own = {name: one for name, one in shipped().items() if f"{one.victim}@".startswith(f"{victim}@")}
    return {f"caprecover:adapter={name}": tuple(one.layers) for name, one in own.items() if len(one.layers) > 1}


def located(path: Path) -> Path:
    """Return where an adapter lies: what is no file may be the name of one that comes with the package."""
    own = Path(str(_SHIPPED)) / f"{path.name}.safetensors"
    return own if path.parent == Path("zoo") and not path.is_file() and own.is_file() else path


def read_header(path: Path) -> Header:
    """Return what an adapter says of itself, without its network.

    Raises:
        AdapterError: the file is no adapter.
    """
    tensors, said = _read(path, header_alone=True)
    try:
        return _header(said, tensors)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise AdapterError(f"{printable(path)} has a header that this version cannot read: {error}") from error


def sha256(path: Path) -> str:
    """Return the SHA-256 of an adapter's file.

    Raises:
        AdapterError: there is none.
    """
    path = located(path)
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise AdapterError(
            f"no adapter {printable(path)}: {error.strerror}; seepage train caprecover makes one"
        ) from error


def _read(path: Path, *, header_alone: bool = False) -> tuple[dict[str, Tensor], dict[str, Any]]:
    path = located(path)
    if not path.is_file():
        raise AdapterError(f"no adapter {printable(path)}; seepage train caprecover makes one")
    try:
        with safe_open(path, framework="pt") as file:
            said = json.loads((file.metadata() or {})[_KEY])
            names = [name for name in file.keys() if not header_alone or name.endswith("/hashes")]  # noqa: SIM118
            tensors = {name: file.get_tensor(name) for name in names}
    except KeyError:
        raise AdapterError(
            f"{printable(path)} is no adapter of caprecover; seepage train caprecover makes one"
        ) from None
    except (SafetensorError, OSError, ValueError) as error:
        raise AdapterError(f"{printable(path)} is damaged or no adapter: {error}") from error
    if not isinstance(said, dict) or said.get("format") != _FORMAT:
        raise AdapterError(f"{printable(path)} is of a format that this version does not read; it reads {_FORMAT}")
    return tensors, said


def _halved(name: str, storage: Storage) -> bool:
    """Moments of features may be larger than fp16 goes, and are few."""
    moment = name.startswith("mappers.") and name.rpartition(".")[2] in ("mean", "spread")
    return storage != "fp32" and not moment


def _said(header: Header) -> dict[str, Any]:
    said = {item.name: getattr(header, item.name) for item in fields(header)}
    said |= {part: said[part].manifest_sha256 for part in ("train", "select")}
    said |= {"config": asdict(header.config), "layers": [[name, list(shape)] for name, shape in header.layers.items()]}
    return {**said, "scores": dict(header.scores), "format": _FORMAT}


def _header(said: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Header:
    rest = {key: value for key, value in said.items() if key != "format"}
    seen = {part: Seen(rest[part], _unpacked(tensors[_HASHES.format(part)])) for part in ("train", "select")}
    classes = None if rest["classes"] is None else tuple(rest["classes"])
    layers = {name: tuple(shape) for name, shape in rest["layers"]}
    return Header(**{**rest, **seen, "classes": classes, "layers": layers, "config": ModelConfig.of(rest["config"])})


def _packed(hashes: Iterable[str]) -> UInt8[Tensor, "n 6"]:
    rows = [list(bytes.fromhex(one)) for one in sorted(hashes)]
    return torch.tensor(rows, dtype=torch.uint8).reshape(len(rows), REMEMBERED // 2)


def _unpacked(rows: UInt8[Tensor, "n 6"]) -> frozenset[str]:
    return frozenset(bytes(row).hex() for row in rows.tolist())


class FromAdapter:
    """What an attack answers of the adapter that its `adapter` names, if it names one."""

    adapter: Path | None

    def equipment_sha256(self) -> str | None:
        """Return the hash of the adapter's file.

        Raises:
            AdapterError: there is none.
        """
        return None if self.adapter is None else sha256(self.adapter)

    def learned_from(self, hashes: Sequence[str]) -> tuple[str, ...]:
        """Return those SHA-256 of picture files that the adapter was trained or selected on.

        Raises:
            AdapterError: the adapter cannot be read.
        """
        return () if self.adapter is None else read_header(self.adapter).seen(hashes)

    def places(self) -> tuple[str, ...] | None:
        """Return the layers that the adapter was trained at.

        Raises:
            AdapterError: the adapter cannot be read.
        """
        return None if self.adapter is None else tuple(read_header(self.adapter).layers)
