"""From finished samples to the record of a cell: statistics, controls, checks, cost."""

from __future__ import annotations

import functools
import math
import platform
import resource
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

import torch

from .. import __version__
from ..checks import check
from ..data import batches
from ..defenses.privacy import NoAccountantError, guarantee
from ..metrics.fluency import Distinct, Repetition
from ..metrics.human import human_ceiling
from ..metrics.label import TopLabels
from ..metrics.likelihood import Likelihood, NllGap
from ..metrics.perplexity import Perplexity
from ..metrics.sentences import Additive, CaptionMetric
from ..schema import Cell, Check, Cost, Environment, Protection, Scale, Spec, Stats
from ..store import SampleLine
from ..types import Captions, Metric, Pictures, Recovery, Scores, SplitModel, Status
from .bounds import bound
from .exposure import NAIVE, NONE, Exposure
from .gradients import gradient_masking
from .rows import take
from .scoring import CEILINGS, HUMAN
from .statistics import describe, interval_of_sums, with_recovery
from .workbench import Workbench

_PACKAGES = ("torch", "torchvision", "timm", "numpy", "pillow", "scikit-image")


def record(
    bench: Workbench, key: str, spec: Spec, split: SplitModel, lines: Sequence[SampleLine], fit_seconds: float
) -> Cell:
    """Return the record of a finished cell from its samples, in the order of the pictures."""
    exposure = Exposure(bench, split, spec.attacker, spec.sends)
    ordered = sorted(lines, key=lambda line: line.index)
    samples = tuple(line.sample for line in ordered)
    good = [line for line in ordered if line.sample.status != "failed"]
    recovers = bench.attack(spec.attack).recovers
    metrics = bench.metrics(recovers)
    summary, controls = _summarise(bench, metrics, good, len(ordered) - len(good))
    ceilings = {name: controls.pop(name) for name in CEILINGS if name in controls}
    unavailable = dict(bench.unavailable(recovers))
    protection, lacking = protections(exposure)
    unavailable |= lacking
    gallery = bench.gallery_pictures if recovers == "images" else None
    # Of these alone there is no shuffled one: what they are is a difference from another picture's.
    paired = all(isinstance(metrics[name], NllGap) for name in summary)
    if good and not (paired and summary) and not any("shuffled" in line.controls for line in good):
        unavailable["shuffled"] = "there is no other picture to score these recoveries against"
    elif bench.gallery is not None and gallery is not None and not bench.gallery.others:
        unavailable["shuffled"] = "of identities: the gallery knows but one of the people under audit"
    for name, metric in metrics.items():
        reason = _unmeasured(metric)
        if good and reason and name not in summary:
            unavailable.setdefault(name, reason)
    return Cell(
        key=key,
        status="done" if good else "failed",
        message="" if good else f"every sample failed, the first because: {samples[0].message}",
        unavailable=unavailable,
        spec=spec,
        cut=bench.cut(split.layer),
        protection=protection,
        environment=environment(bench.device),
        samples=samples,
        summary=summary,
        scales={name: _scale(metrics[name]) for name in summary},
        controls=controls,
        ceilings=ceilings,
        utility=utility(exposure),
        bytes_per_image=exposure.bytes_per_image(),
        # It is on the squared error of pictures: words and labels have none.
        bound=bound(bench, split, spec, [line.index for line in good], exposure.defense)
        if recovers == "images"
        else None,
        checks=(
            # What a defense did to a leak no picture need explain.
            *check(
                samples, summary, pictures=spec.attacker == NONE and any(item.residual is not None for item in samples)
            ),
            *gradient_masking(exposure.law, split.leak(torch.full((1, *split.image_shape), 0.5))),
            *([Check(name="resized", level="info", message=bench.resized)] if bench.resized else []),
            *([Check(name="public pictures", level="info", message=bench.left_out)] if bench.left_out else []),
            *([bench.gallery.check(gallery)] if bench.gallery is not None and gallery is not None else []),
        ),
        cost=Cost(
            fit_seconds=fit_seconds,
            seconds=sum(sample.seconds for sample in samples),
            passes=sum(line.passes for line in ordered),
            peak_bytes=_peak_bytes(bench.device),
            defense_seconds=defense_seconds(exposure),
        ),
    )


def protections(exposure: Exposure) -> tuple[tuple[Protection, ...], dict[str, str]]:
    """Return what each defense claims, and why a guarantee that it gives cannot be told."""
    defense = exposure.defense
    if defense is None:
        return (), {}
    promised, lacking = None, {}
    try:
        promised = guarantee(defense, tuple(exposure.bench.cut(exposure.split.layer).shape), exposure.sends)
    except NoAccountantError as error:
        lacking["epsilon"] = str(error)
    found = []
    for place, (name, stage) in enumerate(zip(defense.texts, defense.stages, strict=True)):
        own = promised if promised is not None and promised.stage == place else None
        budget = (None, None) if own is None else (own.epsilon, own.delta)
        found.append(
            Protection(
                name=name, holder=stage.holder, protects_from=stage.protects_from, epsilon=budget[0], delta=budget[1]
            )
        )
    return tuple(found), lacking


def _unmeasured(metric: Metric) -> str:
    """Why a metric that could be had has no value, where the attack is the reason."""
    if Scores in metric.reads:
        return "the attack ranks no candidates"
    if isinstance(metric, Likelihood):
        return "the attack has no language model to ask"
    if isinstance(metric, TopLabels):
        return "none of the pictures' classes is among those that the attack names"
    return ""


def _summarise(
    bench: Workbench, metrics: Mapping[str, Metric], good: Sequence[SampleLine], n_failed: int
) -> tuple[dict[str, Stats], dict[str, dict[str, Stats]]]:
    summary: dict[str, Stats] = {}
    controls: dict[str, dict[str, Stats]] = {}
    for name, metric in metrics.items():
        having = [line for line in good if name in line.sample.metrics]
        if not having:
            continue
        values = [line.sample.metrics[name] for line in having]
        nulls = _control_values(having, name)
        stats = describe(values, higher_leaks=metric.higher_means_more_leakage, n_failed=n_failed)
        against = {control: scores for control, scores in nulls.items() if control not in CEILINGS}
        ceilings = [nulls[ceiling] for ceiling in CEILINGS if len(nulls.get(ceiling, ())) == len(values)]
        # How a caption reads is no leakage, and no share of it is recovered.
        fluent = isinstance(metric, Distinct | Perplexity | Repetition)
        truth = metric.perfect if metric.perfect is not None or fluent or not ceilings else ceilings[0]
        higher = metric.higher_means_more_leakage
        summary[name] = with_recovery(stats, values, against, perfect=truth, higher_leaks=higher)
        summary[name] = summary[name].model_copy(update=_corpus(bench, having, metric))
        for control, scores in nulls.items():
            beside = describe(scores, higher_leaks=metric.higher_means_more_leakage)
            if control == HUMAN and summary[name].corpus is not None:
                beside = beside.model_copy(update=_human_corpus(bench, having, metric))
            controls.setdefault(control, {})[name] = beside
    return summary, controls


def _corpus(bench: Workbench, lines: Sequence[SampleLine], metric: Metric) -> dict[str, float | None]:
    """The score of all captions together, where the records hold them: a redacted one does not. With its interval."""
    persons = [line for line in lines if HUMAN in line.controls]
    lines = persons if isinstance(metric, Distinct) and persons else lines
    texts = [line.sample.recovered.caption for line in lines if line.sample.recovered is not None]
    known = tuple(text for text in texts if text is not None)
    if Captions not in metric.reads or len(known) < len(lines):
        return {}
    unsaid, status = torch.full((len(known),), torch.nan), (Status("stopped"),) * len(known)
    recovery = Recovery(Captions(known, unsaid), status, torch.zeros(len(known), dtype=torch.long))
    return _together(metric, take(bench.captioned, [line.index for line in lines]), recovery)


def _human_corpus(bench: Workbench, lines: Sequence[SampleLine], metric: Metric) -> dict[str, float | None]:
    """The same of people's captions of the same pictures, where it takes no model to tell."""
    if not isinstance(metric, Additive | Distinct):
        return {}
    rows = [line.index for line in lines if HUMAN in line.controls]
    return _together(metric, *human_ceiling(take(bench.captioned, rows)))


def _together(metric: Metric, truth: Pictures, recovery: Recovery) -> dict[str, float | None]:
    found: dict[str, float | None] = {"corpus": metric.corpus(truth, recovery)}
    summed = metric.summed(truth, recovery) if isinstance(metric, CaptionMetric) else None
    if summed is not None:
        found["corpus_low"], found["corpus_high"] = interval_of_sums(*summed)
    return found


def _scale(metric: Metric) -> Scale:
    return Scale(unit=metric.unit, higher_means_more_leakage=metric.higher_means_more_leakage)


def _control_values(lines: Sequence[SampleLine], metric: str) -> Mapping[str, list[float]]:
    names = dict.fromkeys(name for line in lines for name in line.controls)
    values = {n: [c[n][metric] for c in (line.controls for line in lines) if metric in c.get(n, {})] for n in names}
    return {name: scores for name, scores in values.items() if scores}


def utility(exposure: Exposure) -> dict[str, float]:
    """Return what the rightful next stage keeps: its outputs on what it restores, against the uncut, undefended model:
    of a victim with a trained defense in it, the one without.

    `agreement` is the share of pictures whose top class stays (where the outputs are known to be class scores),
    `cosine` the mean cosine between the outputs. Nothing of a dump that only its secret undoes.
    """
    return dict(_next_stage(exposure.bench, exposure.split, exposure.defense is not None)[0])


def defense_seconds(exposure: Exposure) -> float:
    """Return what protecting one picture and undoing it takes, the median over pictures; 0 where nothing does."""
    return _next_stage(exposure.bench, exposure.split, exposure.defense is not None)[1]


@functools.lru_cache(maxsize=32)
@torch.no_grad()
def _next_stage(bench: Workbench, split: SplitModel, defended: bool) -> tuple[Mapping[str, float], float]:
    """Return the utility and the defense's seconds a picture: a picture is protected once for both."""
    exposure = Exposure(bench, split, NAIVE if defended else NONE)
    agreements, cosines, spent = list[float](), list[float](), list[float]()
    victim = bench.victim
    undefended = victim.model if victim.undefended is None else victim.undefended
    for batch in batches(bench.source, split.load, 16):
        if batch.pictures is None:
            continue
        rows = [row for row, index in enumerate(batch.indices) if bench.at_hand(index)]
        if not rows:
            continue
        images = batch.pictures.images[rows].to(bench.device)
        received, seconds = exposure.restored([batch.indices[row] for row in rows], images)
        if received is None:
            return {}, 0.0
        spent += seconds
        finite = torch.isfinite(received.features.flatten(1)).all(1)
        if not finite.any():
            continue
        whole = _first(undefended(victim.normalise(images[finite]))).flatten(1).float()
        kept = split.finish(received.with_features(received.features[finite])).flatten(1).float()
        if victim.scores:
            agreements += (whole.argmax(1) == kept.argmax(1)).double().tolist()
        cosines += torch.nn.functional.cosine_similarity(whole, kept).double().tolist()
    found = {"agreement": agreements, "cosine": cosines}
    means = {name: math.fsum(values) / len(values) for name, values in found.items() if values}
    return means, statistics.median(spent) if spent else 0.0


def _first(outputs: object) -> torch.Tensor:
    """The first tensor of a model's outputs."""
    if isinstance(outputs, torch.Tensor):
        return outputs
    parts = outputs.values() if isinstance(outputs, Mapping) else outputs
    return _first(next(iter(parts)))  # type: ignore[call-overload]


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@functools.lru_cache(maxsize=4)
def environment(device: torch.device) -> Environment:
    """Return where this runs: versions, commit of a source checkout, device."""
    packages = {name: metadata.version(name) for name in _PACKAGES}
    packages["python"] = platform.python_version()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return Environment(version=__version__, git=_commit(), packages=packages, device=f"{device}: {name}")


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    models = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    model = models[0].partition(":")[2].strip() if models else platform.processor() or platform.machine()
    return f"{model}, {torch.get_num_threads()} threads"


def _commit() -> str | None:
    """The commit of the checkout this package runs from; None for an installed one."""
    root = Path(__file__).resolve().parents[3]
    if not (root / ".git").exists():
        return None
    try:
        said = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return said.stdout.strip()
