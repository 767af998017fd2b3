"""Cells of attacks that recovered captions or labels, beside those of pictures: made up, with their numbers."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from report_cells import ids, picture, spec, stats

from seepage.schema import Cell, Cost, Cut, Sample, Scale, Shown

CAPTIONS = ("a brown dog runs over the wet sand", "two children climb a rope ladder", "a man in a red coat skis")
REFERENCES = ("a dog runs along the beach", "two kids play on a rope", "a skier in red goes downhill")
CAPTION_METRICS = ("bleu1", "rouge_l", "cider", "nll", "nll_gap")
LAYERS = ("features.3", "features.13", "features.17")


def said(
    folder: Path,
    layer: str = "features.17",
    strength: float = 0.8,
    names: Sequence[str] = tuple(ids(4)),
    references: bool = True,
    captions: Sequence[str] = CAPTIONS,
    files: bool = True,
    **more: object,
) -> Cell:
    """A finished cell of captions: ROUGE-L is half the strength, CIDEr-D the strength, both beside controls."""
    made = spec(layer, "caprecover:beams=1", metrics=CAPTION_METRICS, judges={}, auxiliary="public", **more)
    values = {"nll_gap": [strength - 0.1 * (number % 3) for number in range(len(names))]}
    if references:
        values |= {
            "rouge_l": [strength / 2 - 0.02 * (number % 3) for number in range(len(names))],
            "cider": [strength + 0.1 * (number % 3) for number in range(len(names))],
            "nll": [4 - strength + 0.1 * (number % 2) for number in range(len(names))],
        }
    null = {"rouge_l": 0.18, "cider": 0.1, "nll": 3.6, "nll_gap": 0.02}
    samples = tuple(
        Sample(
            id=name,
            image_sha256="0" * 64,
            status="stopped",
            metrics={key: many[number] for key, many in values.items()},
            recovered=Shown(caption=captions[number % len(captions)]),
            truth=Shown(
                image=truth(folder, number) if files else None,
                caption=REFERENCES[number % len(REFERENCES)] if references else None,
            ),
            seconds=0.2,
        )
        for number, name in enumerate(names)
    )
    gain = float(np.mean(values.get("rouge_l", [0.0]))) - null["rouge_l"]
    share = dict.fromkeys(("recovery", "recovery_low", "recovery_high"), gain / (1 - null["rouge_l"]))
    ceiling = {"human": {"rouge_l": stats([0.47]), "cider": stats([0.9])}} if references else {}
    return _cell(made, layer, samples, values, null, "rouge_l", share).model_copy(update={"ceilings": ceiling})


def named(
    folder: Path,
    layer: str = "features.17",
    right: float = 0.75,
    names: Sequence[str] = tuple(ids(12)),
    classes: Sequence[str] = ("cat", "dog", "owl"),
    kind: str = "linear",
    files: bool = True,
    **more: object,
) -> Cell:
    """A finished cell of labels: the first `right` of the pictures are right, the rest are taken for the next class."""
    made = spec(layer, f"probe:kind={kind}", metrics=("top1", "top5"), judges={}, auxiliary="public", **more)
    hits = [float(number < right * len(names)) for number in range(len(names))]
    samples = tuple(
        Sample(
            id=name,
            image_sha256="0" * 64,
            status="stopped",
            metrics={"top1": hits[number], "top5": 1.0},
            recovered=Shown(label=classes[(number + (hits[number] == 0)) % len(classes)]),
            truth=Shown(image=truth(folder, number) if files else None, label=classes[number % len(classes)]),
            seconds=0.01,
        )
        for number, name in enumerate(names)
    )
    null, chance = {"top1": 1 / len(classes), "top5": min(1.0, 5 / len(classes))}, 1 / len(classes)
    better = (float(np.mean(hits)) - chance) / (1 - chance)
    share = dict.fromkeys(("recovery", "recovery_low", "recovery_high"), better)
    return _cell(made, layer, samples, {"top1": hits, "top5": [1.0] * len(names)}, null, "top1", share)


def truth(folder: Path, number: int) -> str:
    """An original's file, as `report_cells.whole` writes it."""
    path = f"images/truth/{number}-48.png"
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((picture(number) * 255).astype(np.uint8)).save(folder / path)
    return path


def _cell(
    made: object,
    layer: str,
    samples: tuple[Sample, ...],
    values: dict[str, list[float]],
    null: dict[str, float],
    normalised: str,
    share: dict[str, float],
) -> Cell:
    summary = {key: stats(many, **(share if key == normalised else {})) for key, many in values.items()}
    count = len(samples)
    return Cell.model_validate(
        {
            "key": hashlib.sha256(repr((made, values)).encode()).hexdigest(),
            "status": "done",
            "spec": made,
            "cut": Cut(index=int(layer.rpartition(".")[2]), shape=(8, 4, 4), macs_before=10, macs_after=90),
            "samples": samples,
            "summary": summary,
            "scales": {key: Scale(unit="nat/token") for key in values if key.startswith("nll")},
            "controls": {
                "constant": {key: stats([null[key]] * count) for key in values},
                "shuffled": {key: stats([null[key] * 0.9] * count) for key in values if key != "nll_gap"},
            },
            "cost": Cost(fit_seconds=3.0, seconds=2.0, passes=0, peak_bytes=10_000_000),
        }
    )
