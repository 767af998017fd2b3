"""What a user asks of an audit: one value, from the command line, a YAML file or Python."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydantic
import yaml

from .. import wire
from ..registry import suggest
from ..types import SeepageError

DEFAULT_VICTIM = "zoo/mobilenet_v2"
DEFAULT_JUDGE = "zoo/efficientnet_lite0"
DEFAULT_ATTACKS = ("joint", "peel", "rmle")
ATTACKERS = ("naive", "aware:estimate", "aware:likelihood", "aware:retrained", "repeated")
EFFORTS = ("quick", "standard", "full")
PICTURE_METRICS = ("mse", "psnr", "ssim", "ms_ssim", "lpips", "agreement")
CAPTION_METRICS = ("bleu1", "bleu2", "bleu3", "bleu4", "rouge_l", "cider", "cosine", "nll", "nll_gap")
LABEL_METRICS = ("top1", "top5")
IDENTITY_METRICS = ("knn_distance", "rank1")


class RequestError(SeepageError):
    """The request cannot be served as it stands: one line that says why and what would work."""


@dataclass(frozen=True)
class Request:
    """An audit as asked for.

    Empty `layers` and `attacks` mean the victim's default cuts and `DEFAULT_ATTACKS`. A cell is asked those of the
    `metrics` that read what its attack recovers; where none is named, `PICTURE_METRICS`, `CAPTION_METRICS` or
    `LABEL_METRICS`.
    `images` is a folder, a file or DATASET/SPLIT[@PATH], None the embedded photographs; `leak` a stored dump whose rows
    are those pictures; `judges` are `[label=]VICTIM` and `face=VICTIM[:LAYER]`; a `gallery` of other pictures of the
    same people adds `IDENTITY_METRICS` where none of them is asked for. `defenses` are
    applied in order, and met by each of `ATTACKERS` unless `attackers` names some; `repeated` has `sends` sends of a
    picture. `device` and `workers` do not change results.
    """

    victim: str = DEFAULT_VICTIM
    images: str | None = None
    layers: tuple[str, ...] = ()
    attacks: tuple[str, ...] = ()
    defenses: tuple[str, ...] = ()
    attackers: tuple[str, ...] = ()
    sends: int = 1
    wire: str = "fp32"
    metrics: tuple[str, ...] = ()
    judges: tuple[str, ...] = ()
    public: str | None = None
    gallery: str | None = None
    leak: str | None = None
    effort: str = "standard"
    size: int | None = None
    limit: int | None = None
    seed: int = 0
    redact: bool = False
    device: str = "cpu"
    workers: int = 1

    def __post_init__(self) -> None:
        if self.effort not in EFFORTS:
            raise RequestError(f"--effort is one of {', '.join(EFFORTS)}, got {self.effort!r}")
        if self.wire not in wire.FORMATS:
            raise RequestError(f"--wire is one of {', '.join(wire.FORMATS)}, got {self.wire!r}")
        for name, least in (("sends", 1), ("limit", 1), ("size", 8), ("workers", 1), ("seed", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise RequestError(f"--{name} is at least {least}, got {value}")
        if (self.attackers or self.sends > 1) and not self.defenses and self.leak is None:
            raise RequestError("--attacker and --sends say how a defense is attacked: name one with --defense")
        for name in self.attackers:
            if name not in ATTACKERS:
                raise RequestError(f"--attacker: nobody is called {name!r}{suggest(name, ATTACKERS)}")
        if set(self.attackers) == {"naive"}:
            raise RequestError(
                "--attacker naive alone shows no protection from who knows the defense: add one of "
                + ", ".join(ATTACKERS[1:])
            )
        if self.leak is not None and len(self.layers) != 1:
            raise RequestError("--leak scores the dump of one cut: name it with one --layer")

    def folder(self) -> Path:
        """Return the default output folder: the same request resumes in the same place."""
        asked = {k: v for k, v in dataclasses.asdict(self).items() if k not in ("device", "workers")}
        digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
        return Path("seepage-out") / digest[:12]


def read_spec(path: Path) -> dict[str, Any]:
    """Read the fields of a request from a YAML file; a single value serves where a list is expected.

    Raises:
        RequestError: the file cannot be read, is no mapping, or has an unknown or ill-typed key.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RequestError(f"--spec {path}: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise RequestError(f"--spec {path}: expected a mapping like 'victim: {DEFAULT_VICTIM}'")
    fields = {field.name: field for field in dataclasses.fields(Request)}
    values: dict[str, Any] = {}
    for key, value in content.items():
        if key not in fields:
            raise RequestError(f"--spec {path}: no key {key!r}{suggest(str(key), fields)}")
        is_list = str(fields[key].type).startswith("tuple")
        values[key] = tuple(value) if isinstance(value, list) else (value,) if is_list else value
    try:
        checked = pydantic.TypeAdapter(Request).validate_python(values)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise RequestError(f"--spec {path}: {where}: {first['msg']}") from error
    return {key: getattr(checked, key) for key in values}
