"""Check the law of the cut and the segments on every architecture at full size, with random weights.

    python benchmarks/layers.py [PART_OF_A_NAME]...

Writes results/layers.json and .md beside this file, after each architecture, or prints those that the parts name: how
many cuts are legal, the largest relative error of `suffix(prefix(x)) == model(x)` over the block boundaries, that of
the segments called in turn against the prefix at the deepest of them, and how long listing the boundaries takes.
"""

from __future__ import annotations

import gc
import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch

from seepage.victims import Victim, load
from seepage.victims.cut import cut, law
from seepage.victims.layers import boundaries, layers, look
from seepage.victims.segments import Through, relative_error

RESULTS = Path(__file__).parent / "results"
NAMES = (
    "torchvision/resnet18",
    "torchvision/resnet50",
    "timm/resnetv2_50",
    "torchvision/wide_resnet50_2",
    "torchvision/mobilenet_v2",
    "torchvision/mobilenet_v3_small",
    "torchvision/mobilenet_v3_large",
    "torchvision/efficientnet_b0",
    "torchvision/convnext_tiny",
    "torchvision/densenet121",
    "torchvision/regnet_y_400mf",
    "torchvision/vit_b_16",
    "torchvision/vit_b_32",
    "torchvision/swin_t",
    "open_clip/RN50",
    "open_clip/RN101",
    "open_clip/ViT-B-32",
    "open_clip/ViT-B-16",
    "open_clip/ViT-L-14",
    "open_clip/ViT-B-16-SigLIP",
    "hf/resnet",
    "hf/vit",
    "hf/clip",
    "hf/siglip",
    "hf/dinov2",
    "hf/llava",
    "hf/blip-2",
)


@dataclass(frozen=True)
class Row:
    """What was found of one architecture."""

    name: str
    parameters: int
    pixels: int
    macs: int
    boundary_cuts: int
    all_cuts: int
    refused: tuple[str, ...]
    law_error: float
    segments: int
    segments_alone: int
    segments_error: float
    list_seconds: float


def main(parts: Sequence[str]) -> None:
    """Check every architecture and write after each."""
    names = [name for name in NAMES if not parts or any(part in name for part in parts)]
    rows: list[Row] = []
    for name in names:
        rows.append(row(load(f"{name}@random")))
        print(_line(rows[-1]), flush=True)
        gc.collect()
        if not parts:
            _write(rows)


def row(victim: Victim) -> Row:
    """Check one architecture."""
    began = time.perf_counter()
    listed = layers(victim)
    seconds = time.perf_counter() - began
    seen = look(victim)
    sites = {call.label: call.site for call in boundaries(victim, seen)}
    laws = law(victim, sites.values())
    prefix = cut(victim, listed[-1].name).prefix
    images = torch.rand(2, *victim.image_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features = images
        for segment in prefix.segments:
            features = segment.module(features)
        error = relative_error(features, prefix(images))
    return Row(
        name=victim.name,
        parameters=sum(weight.numel() for weight in victim.model.parameters()),
        pixels=victim.image_shape[1],
        macs=seen.macs,
        boundary_cuts=len(listed),
        all_cuts=len(seen.legal),
        refused=tuple(label for label, site in sites.items() if not laws[site].holds),
        law_error=max(found.error for found in laws.values()),
        segments=len(prefix.segments),
        segments_alone=sum(not isinstance(segment.module, Through) for segment in prefix.segments),
        segments_error=error,
        list_seconds=seconds,
    )


def _line(found: Row) -> str:
    refused = ", ".join(found.refused) or "none"
    return (
        f"| {found.name} | {found.parameters / 1e6:.1f} | {found.pixels} | {found.macs / 1e9:.2f} "
        f"| {found.boundary_cuts} | {found.all_cuts} | {refused} | {found.law_error:.1e} "
        f"| {found.segments_alone} of {found.segments} | {found.segments_error:.1e} | {found.list_seconds:.1f} |"
    )


def _write(rows: Sequence[Row]) -> None:
    machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    about = f"{machine}, {platform.system()}, torch {torch.__version__}, {datetime.now(UTC):%Y-%m-%d}"
    head = (
        "| victim | parameters (M) | pixels | multiply-adds (G) | cuts at boundaries | all legal cuts | refused "
        "| law, worst error | segments called alone | segments, error | listing (s) |"
    )
    table = [head, "|" + "---|" * head.count(" | ") + "---|", *map(_line, rows)]
    RESULTS.mkdir(exist_ok=True)
    text = "\n".join([f"`python benchmarks/layers.py`, {about}. Errors are relative, in 2-norms.", "", *table, ""])
    (RESULTS / "layers.md").write_text(text)
    record = {"machine": about, "rows": [asdict(found) for found in rows]}
    (RESULTS / "layers.json").write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
