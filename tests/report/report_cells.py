"""Cells of an audit that never ran: made-up pictures, degraded with depth, and the numbers that go with them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from seepage.schema import Cell, Check, Cost, Cut, Environment, Judge, Sample, Shown, Spec, Stats

LAYERS = ("features.1", "features.3", "features.6", "features.13", "features.17")
ATTACKS = ("rmle:steps=400,tv=0.0001,norm=1e-06", "joint:steps=300,lm_steps=12,tv=0.0003", "peel:steps=20")
HIGHER = {"psnr": True, "ssim": True, "agreement": True, "mse": False}


def stats(values: Sequence[float], higher: bool = True, **more: float) -> Stats:
    """Statistics of a few values, the interval as plus or minus half a standard deviation."""
    array = np.asarray(values, dtype=float)
    mean, half = float(array.mean()), float(array.std()) / 2
    return Stats(
        mean=mean,
        median=float(np.median(array)),
        min=float(array.min()),
        max=float(array.max()),
        worst=float(array.max() if higher else array.min()),
        ci_low=mean - half,
        ci_high=mean + half,
        n=len(array),
        **more,
    )


def spec(layer: str = "features.1", attack: str = "joint", **more: object) -> Spec:
    """A spec, with whatever is to differ."""
    values: dict[str, object] = {
        "victim": "zoo/mobilenet_v2@IMAGENET1K_V2",
        "weights_sha256": "b03531047f" + "0" * 54,
        "layer": layer,
        "attack": attack,
        "effort": "quick",
        "auxiliary": "synthetic" if attack.startswith("joint") else "none",
        "data": "samples",
        "manifest_sha256": "a" * 64,
        "metrics": ("mse", "psnr", "ssim", "agreement"),
        "judges": {"label": Judge(name="zoo/efficientnet_lite0", sha256="57934424" + "1" * 56)},
    }
    return Spec.model_validate(values | more)


def judged(ssim: Sequence[float], control: float = 0.2, layer: str = "features.1", **more: object) -> Cell:
    """A finished cell of which only the numbers count: SSIM a picture, and that of its one control."""
    mse = [(1 - value) / 10 for value in ssim]
    null = [(1 - control) / 10] * len(ssim)
    better = float(np.mean(null) - np.mean(mse)) / float(np.mean(null))
    recovery = {"recovery": better, "recovery_low": better, "recovery_high": better}
    given = {
        key: more.pop(key) for key in ("attack", "defenses", "attacker", "access", "auxiliary", "data") if key in more
    }
    values: dict[str, object] = {
        "key": hashlib.sha256(repr((layer, tuple(ssim), control, given)).encode()).hexdigest(),
        "status": "done",
        "spec": spec(layer, **given),  # type: ignore[arg-type]
        "cut": Cut(index=int(layer.rpartition(".")[2]), shape=(8, 4, 4), macs_before=10, macs_after=90),
        "samples": tuple(
            Sample(id=f"{n}.png", image_sha256="0" * 64, status="stopped", metrics={"ssim": value, "mse": error})
            for n, (value, error) in enumerate(zip(ssim, mse))
        ),
        "summary": {"ssim": stats(ssim), "mse": stats(mse, False, **recovery)},
        "controls": {"mean_picture": {"ssim": stats([control] * len(ssim)), "mse": stats(null, False)}},
    }
    return Cell.model_validate(values | more)


def picture(number: int, size: int = 48) -> np.ndarray:
    """A made-up picture, "h w 3" in [0, 1]: a gradient, a disc and a stripe."""
    y, x = np.mgrid[0:size, 0:size] / size
    image = np.stack([x, y, (x + y) / 2 * (number % 3) / 2], axis=2)
    image[(x - 0.3 - 0.04 * (number % 7)) ** 2 + (y - 0.5) ** 2 < 0.05] = (0.9, 0.4, 0.1)
    image[:, size // 2 : size // 2 + 3] = (number % 5) / 5
    return image


def ids(count: int) -> list[str]:
    """Harmless file names."""
    return [f"picture-{number:03d}.png" for number in range(count)]


def whole(
    folder: Path,
    names: Sequence[str] = tuple(ids(4)),
    layers: Sequence[str] = LAYERS,
    attacks: Sequence[str] = ATTACKS,
    size: int = 48,
    caption: str | None = None,
    label: str | None = "tabby cat",
    files: bool = True,
    **more: object,
) -> list[Cell]:
    """The cells of a whole audit, attack by attack at every layer, with their pictures below a folder."""
    return [
        _cell(folder, names, layers, depth, attack, strength, size, caption, label, files, more)
        for depth in range(len(layers))
        for strength, attack in enumerate(attacks)
    ]


def _cell(
    folder: Path,
    names: Sequence[str],
    layers: Sequence[str],
    depth: int,
    attack: str,
    strength: int,
    size: int,
    caption: str | None,
    label: str | None,
    files: bool,
    more: dict[str, object],
) -> Cell:
    made = spec(layers[depth], attack, **more)
    key = hashlib.sha256(made.model_dump_json().encode()).hexdigest()
    noise = 0.01 * 2.2 ** (depth + (strength + 1) % 3)
    rng = np.random.default_rng(depth * 100 + strength)
    samples, controls = [], []
    for number, name in enumerate(names):
        truth = picture(number, size)
        got = np.clip(truth + rng.normal(0, noise, truth.shape), 0, 1)
        paths = (f"images/truth/{number}-{size}.png", f"images/{key[:16]}/{number}.png")
        if files:
            for path, image in zip(paths, (truth, got)):
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray((image * 255).astype(np.uint8)).save(folder / path)
        error = float(((truth - got) ** 2).mean())
        samples.append(
            Sample(
                id=name,
                image_sha256=hashlib.sha256(name.encode(errors="replace")).hexdigest(),
                status="stopped",
                residual=noise,
                metrics={
                    "mse": error,
                    "psnr": -10 * math.log10(error),
                    "ssim": max(0.05, 1 - 2.5 * noise - 0.01 * number),
                    "agreement": float(noise < 0.2),
                },
                recovered=Shown(image=paths[1], label=label),
                truth=Shown(image=paths[0], label=label, caption=caption),
                seconds=1.5,
            )
        )
        controls.append({"mse": 0.06, "psnr": 12.2 + number % 3, "ssim": 0.18, "agreement": 0.0})
    values = {key: [sample.metrics[key] for sample in samples] for key in HIGHER}
    share = {"recovery": 1 - float(np.mean(values["mse"])) / 0.06}
    share |= {"recovery_low": share["recovery"] - 0.02, "recovery_high": share["recovery"] + 0.01}
    return Cell(
        key=key,
        status="done",
        spec=made,
        cut=Cut(index=depth + 1, shape=(16 * (depth + 1), 56, 56), macs_before=3 ** (depth + 1), macs_after=400),
        environment=Environment(
            version="0.1.0", git="0123456789abcdef", packages={"torch": "2.15.0", "timm": "1.0.20"}, device="cpu: a CPU"
        ),
        samples=tuple(samples),
        summary={key: stats(values[key], HIGHER[key], **(share if key == "mse" else {})) for key in HIGHER},
        controls={
            name: {key: stats([c[key] * factor for c in controls], HIGHER[key]) for key in HIGHER}
            for name, factor in (("mean_picture", 1.0), ("prior", 0.9), ("shuffled", 0.8))
        },
        unavailable={"lpips": "no weights on disk"},
        utility={"agreement": 1.0, "cosine": 0.9999},
        bytes_per_image=802816 // 4**depth,
        checks=(
            Check(name="few-pictures", level="warning", message=f"n = {len(names)}: an indication"),
            *([Check(name="not-converged", level="warning", message=f"median residual {noise:.0%}")] * (noise > 0.1)),
        ),
        cost=Cost(fit_seconds=3.0, seconds=1.5 * len(names), passes=400 * len(names), peak_bytes=1_200_000_000),
    )
