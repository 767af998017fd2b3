"""From which value of which metric on is a recovered picture recognisable?

Real photographs are degraded in seven families at strengths drawn at random; a classifier that saw none of this says
what each degraded picture shows, and the metrics say how near it is. The metric that best foretells whether the
classifier still says what it said of the original, whatever the degradation, is chosen on one half of the photographs,
and with it the value at which it does so for half the pictures. The other half checks both, and so do pictures that a
ridge decoder really recovers from MobileNetV2's layers.

    SEEPAGE_DATA=... python benchmarks/recognisable.py

writes results/recognisable.json and .md beside this file. Needs `imagenet_samples_256.tar` in SEEPAGE_DATA.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import sys
import tarfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from degradations import FAMILIES, Family, ridge
from seepage import __version__, registry, victims
from seepage.pictures import read_picture
from seepage.priors import Ridge
from seepage.types import Images, Pictures, Recovery, Status
from seepage.victims.cut import cut

ARCHIVE = "imagenet_samples_256.tar"
JUDGE = "zoo/efficientnet_lite0"
METRICS = ("psnr", "ssim", "ms_ssim")
VICTIM, LAYERS = "zoo/mobilenet_v2", ("features.1", "features.3", "features.6", "features.13")
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Row:
    """One degraded picture: of which, how, what the metrics say and whether the judge still says the same."""

    picture: int
    family: str
    metrics: dict[str, float]
    agrees: bool


def photographs(archive: Path, victim: victims.Victim, count: int, seed: int) -> Float[torch.Tensor, "n 3 h w"]:
    """Return `count` photographs in random order, prepared as the judge takes them."""
    with tarfile.open(archive) as tar:
        names = sorted(member.name for member in tar.getmembers() if member.isfile())
        chosen = [names[i] for i in np.random.default_rng(seed).permutation(len(names))[:count]]
        pictures = []
        for name in chosen:
            file = tar.extractfile(name)
            assert file is not None
            pictures.append(victim.picture(read_picture(BytesIO(file.read()))))
    return torch.stack(pictures)


def degrade(
    pictures: Float[torch.Tensor, "n 3 h w"], families: dict[str, Family], judge: victims.Victim, draws: int, seed: int
) -> Iterator[Row]:
    """Degrade every picture `draws` times in every family, at strengths spread over [0, 1], and score the results."""
    for index, original in enumerate(pictures):
        truth = np.moveaxis(original.double().numpy(), 0, -1)
        random = np.random.default_rng((seed, index))
        names, degraded = [], []
        for name, family in families.items():
            for draw in range(draws):
                names.append(name)
                degraded.append(family(truth, (draw + random.random()) / draws, random).clip(0, 1))
        yield from score(index, original, names, torch.from_numpy(np.moveaxis(np.stack(degraded), -1, 1)), judge)
        if (index + 1) % 50 == 0:
            print(f"{index + 1}/{len(pictures)} photographs", file=sys.stderr)


def recover(pictures: Float[torch.Tensor, "n 3 h w"], first: int, judge: victims.Victim, seed: int) -> Iterator[Row]:
    """Recover every picture from layers of MobileNetV2 by a ridge decoder fitted on synthetic pictures."""
    victim = victims.load(VICTIM)
    decoded = []
    for layer in LAYERS:
        split = cut(victim, layer)
        decoder, _ = Ridge().fit(
            lambda images, split=split: split.leak(images).features,
            split.image_shape,
            torch.Generator().manual_seed(seed),
            device=split.device,
        )
        decoded.append(torch.cat([decoder(split.leak(batch).features) for batch in pictures.split(10)]))
    for row, original in enumerate(pictures):
        recovered = torch.stack([layer[row] for layer in decoded])
        yield from score(first + row, original, list(LAYERS), recovered, judge)


@torch.no_grad()
def score(
    index: int,
    original: Float[torch.Tensor, "3 h w"],
    families: list[str],
    recovered: Float[torch.Tensor, "k 3 h w"],
    judge: victims.Victim,
) -> Iterator[Row]:
    """Ask the metrics and the judge about versions of one picture."""
    recovered = recovered.float()
    said = judge.model(judge.normalise(torch.cat([original[None], recovered]))).argmax(dim=1)
    count = len(recovered)
    recovery = Recovery(Images(recovered), (Status("stopped"),) * count, torch.zeros(count, dtype=torch.long))
    truth = Pictures(original.expand(count, -1, -1, -1), (str(index),) * count)
    scores = {name: registry.build("metric", name)(truth, recovery).tolist() for name in METRICS}
    for row, family in enumerate(families):
        values = {name: scores[name][row] for name in METRICS}
        yield Row(index, family, values, bool(said[row + 1] == said[0]))


def half_point(values: np.ndarray, agrees: np.ndarray) -> float:
    """Return where a logistic curve fitted to the agreements passes one half."""
    spread, centre = values.std(), values.mean()
    fit = LogisticRegression(C=math.inf).fit(((values - centre) / spread)[:, None], agrees)
    return float(centre - spread * fit.intercept_[0] / fit.coef_[0, 0])


def interval(rows: list[Row], metric: str, rounds: int, seed: int) -> tuple[float, float]:
    """Return the half point's 95 % bootstrap interval; whole photographs are drawn, as their rows hang together."""
    random = np.random.default_rng(seed)
    pictures = np.array([row.picture for row in rows])
    values, agrees = columns(rows, metric)
    groups = [np.flatnonzero(pictures == picture) for picture in np.unique(pictures)]
    points = []
    for _ in range(rounds):
        drawn = np.concatenate([groups[i] for i in random.integers(len(groups), size=len(groups))])
        points.append(half_point(values[drawn], agrees[drawn]))
    low, high = np.percentile(points, [2.5, 97.5])
    return float(low), float(high)


def columns(rows: list[Row], metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Return a metric's values and the agreements."""
    return np.array([row.metrics[metric] for row in rows]), np.array([row.agrees for row in rows])


def calibrate(rows: list[Row], metric: str, rounds: int, seed: int) -> dict[str, object]:
    """Return how a metric foretells agreement on the calibration photographs, family by family too."""
    families = sorted({row.family for row in rows})
    values, agrees = columns(rows, metric)
    low, high = interval(rows, metric, rounds, seed)
    apart = {family: columns([row for row in rows if row.family == family], metric) for family in families}
    return {
        "half_point": half_point(values, agrees),
        "half_point_low": low,
        "half_point_high": high,
        "auc": float(roc_auc_score(agrees, values)),
        "auc_of_family": {family: float(roc_auc_score(said, found)) for family, (found, said) in apart.items()},
        "half_point_of_family": {family: half_point(found, said) for family, (found, said) in apart.items()},
    }


def check(rows: list[Row], metric: str, threshold: float) -> dict[str, object]:
    """Return how a threshold fares on photographs it was not chosen on."""
    values, agrees = columns(rows, metric)
    above = values >= threshold
    by_family = {}
    for family in dict.fromkeys(row.family for row in rows):
        found, said = columns([row for row in rows if row.family == family], metric)
        by_family[family] = {
            "mean": float(found.mean()),
            "above": float((found >= threshold).mean()),
            "agreement": float(said.mean()),
            "right": float(((found >= threshold) == said).mean()),
        }
    return {
        "auc": float(roc_auc_score(agrees, values)),
        "balanced_accuracy": float(balanced_accuracy_score(agrees, above)),
        "agreement_above": float(agrees[above].mean()),
        "agreement_below": float(agrees[~above].mean()),
        "half_point": half_point(values, agrees),
        "families": by_family,
        "tenths": [
            {
                "low": float(values[part].min()),
                "high": float(values[part].max()),
                "agreement": float(agrees[part].mean()),
            }
            for part in np.array_split(np.argsort(values), 10)
        ],
    }


def table(result: dict, metrics: dict) -> str:
    """Return the result as Markdown."""
    chosen = result["metric"]
    lines = [
        "# Recognisable",
        "",
        f"A recovered picture is called recognisable from **{chosen} of {result['threshold']:.3f}** on "
        f"(95 % interval {result['threshold_low']:.3f} to {result['threshold_high']:.3f}): there "
        f"{result['judge']} says of half the degraded pictures what it says of the originals.",
        "",
        f"Calibrated on {result['calibration']['pictures']} photographs ({result['calibration']['rows']} degraded "
        f"pictures), checked on {result['check']['pictures']} others ({result['check']['rows']}), of "
        f"{result['size']}x{result['size']} pixels. The metric with the largest area under the ROC curve on the "
        "calibration photographs, over all families together, is the one chosen.",
        "",
        "| metric | half point (95 %) | AUC, calibration | least AUC of a family | AUC, check "
        "| balanced accuracy, check | agreement above / below, check |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, found in metrics.items():
        fit, test = found["calibration"], found["check"]
        lines.append(
            f"| {name} | {fit['half_point']:.3f} ({fit['half_point_low']:.3f} to {fit['half_point_high']:.3f}) "
            f"| {fit['auc']:.3f} | {min(fit['auc_of_family'].values()):.3f} | {test['auc']:.3f} "
            f"| {test['balanced_accuracy']:.3f} | {test['agreement_above']:.2f} / {test['agreement_below']:.2f} |"
        )
    lines += ["", "Half point by family of degradation (what one threshold for all of them averages over):", ""]
    lines += ["| family | " + " | ".join(metrics) + f" | right by {chosen}, check |", "|---" * (len(metrics) + 2) + "|"]
    for family, what in result["families"].items():
        points = [f"{found['calibration']['half_point_of_family'][family]:.3f}" for found in metrics.values()]
        right = metrics[chosen]["check"]["families"][family]["right"]
        lines.append(f"| {family}: {what} | {' | '.join(points)} | {right:.2f} |")
    lines += ["", f"Agreement by tenths of {chosen} on the check photographs:", ""]
    lines += [f"| {chosen} | agreement |", "|---|---|"]
    for tenth in metrics[chosen]["check"]["tenths"]:
        lines.append(f"| {tenth['low']:.3f} to {tenth['high']:.3f} | {tenth['agreement']:.2f} |")
    real = metrics[chosen]["recovered"]
    others = [f"{name} {found['recovered']['auc']:.3f}" for name, found in metrics.items() if name != chosen]
    lines += [
        "",
        f"Recoveries that no threshold was chosen on: the check photographs, decoded from {result['victim']} by a "
        f"ridge decoder fitted on synthetic pictures. AUC of {chosen} {real['auc']:.3f} ({', '.join(others)}), "
        f"half point {real['half_point']:.3f}; agreement above the threshold {real['agreement_above']:.2f}, below "
        f"{real['agreement_below']:.2f}.",
        "",
        f"| layer | mean {chosen} | above the threshold | agreement | right |",
        "|---|---|---|---|---|",
    ]
    for layer, found in real["families"].items():
        numbers = (found["mean"], found["above"], found["agreement"], found["right"])
        lines.append(f"| {layer} | " + " | ".join(f"{number:.2f}" for number in numbers) + " |")
    lines += [
        "",
        "It is a classifier's recognition, not a person's, who may recognise a picture below the threshold. It holds "
        "for photographs of this size; on smaller ones it is an extrapolation.",
        "",
        f"`{result['command']}`, {result['machine']}, {result['date']}.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description="Calibrate what counts as a recognisable recovery.")
    parser.add_argument("--pictures", type=int, default=300, help="half of them calibrate, half check")
    parser.add_argument("--draws", type=int, default=2, help="strengths a picture and family")
    parser.add_argument("--rounds", type=int, default=500, help="bootstrap rounds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    folder = os.environ.get("SEEPAGE_DATA")
    if not folder:
        parser.error(f"SEEPAGE_DATA must name the folder that holds {ARCHIVE}")
    torch.set_num_threads(1)
    judge = victims.load(JUDGE)
    pictures = photographs(Path(folder) / ARCHIVE, judge, options.pictures, options.seed)
    half = options.pictures // 2
    families = FAMILIES | {"ridge": ridge(np.moveaxis(pictures[:half].double().numpy(), 1, -1))}
    rows = list(degrade(pictures, families, judge, options.draws, options.seed))
    recovered = list(recover(pictures[half:], half, judge, options.seed))
    calibration = [row for row in rows if row.picture < half]
    checking = [row for row in rows if row.picture >= half]
    metrics: dict[str, dict] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for metric in METRICS:
            fit = calibrate(calibration, metric, options.rounds, options.seed)
            metrics[metric] = {
                "calibration": fit,
                "check": check(checking, metric, fit["half_point"]),
                "recovered": check(recovered, metric, fit["half_point"]),
            }
    chosen = max(METRICS, key=lambda name: metrics[name]["calibration"]["auc"])
    fit = metrics[chosen]["calibration"]
    result = {
        "metric": chosen,
        "threshold": fit["half_point"],
        "threshold_low": fit["half_point_low"],
        "threshold_high": fit["half_point_high"],
        "judge": judge.name,
        "judge_sha256": judge.weights_sha256,
        "victim": VICTIM,
        "data": ARCHIVE,
        "size": int(pictures.shape[-1]),
        "calibration": {"pictures": half, "rows": len(calibration)},
        "check": {"pictures": options.pictures - half, "rows": len(checking)},
        "families": {name: (family.__doc__ or "").rstrip(".") for name, family in families.items()},
        "agreement": float(np.mean([row.agrees for row in rows])),
        "seed": options.seed,
        "draws": options.draws,
        "version": __version__,
        "command": "python benchmarks/recognisable.py",
        "machine": f"{platform.machine()}, one core, torch {torch.__version__}",
        "date": time.strftime("%Y-%m-%d"),
    }
    options.output.mkdir(parents=True, exist_ok=True)
    text = json.dumps({**result, "metrics": metrics}, indent=1)
    (options.output / "recognisable.json").write_text(text + "\n", encoding="utf-8")
    report = table(result, metrics)
    (options.output / "recognisable.md").write_text(report, encoding="utf-8")
    print(report)


if __name__ == "__main__":
    main()
