"""What captions and labels give away, in sentences that a stranger reads in ten seconds."""

from __future__ import annotations

from collections.abc import Sequence

from ..checks import FEW
from . import text, words
from .findings import CIDER_FROM, Finding, Found, rebuilt
from .glossary import Measure, control_name, measure
from .verdict import Verdict, highest_ceiling

RULES = {
    "captions": (
        "What captions decide",
        "Captions tell something of the pictures when their score beats every control, chance allowed for. CIDEr-D "
        f"decides from {CIDER_FROM} pictures on, ROUGE-L below; of pictures without reference captions the likelihood "
        "gap does: how much likelier the recovered caption is under its own leak than under another picture's.",
    ),
    "labels": (
        "What labels decide",
        "Labels are read from the features when the share that is right beats every control, chance allowed for. What "
        "a judge says of the pictures that other attacks rebuilt stands beside it: read the features, or rebuild the "
        "picture first?",
    ),
}


def headline(finding: Finding) -> str:
    """Say at which layers captions, or labels, tell something."""
    told, rest = finding.told, [found for found in finding.layers if not found.told]
    if not finding.layers:
        what = "captions tell of what the pictures show" if finding.kind == "captions" else "labels can be read"
        return f"Whether {what} was not judged."
    if finding.kind == "captions":
        if not told:
            return f"Recovered captions say no more than a sentence that fits any picture, at {_every(rest, 'any')}."
        where = _every(told, "every") if not rest else _names(told)
        other = f"; at {_names(rest)} no more than a sentence that fits any picture" if rest else ""
        return f"Recovered captions tell of what the pictures show at {where}{other}."
    if not told:
        return f"No label is read from the features, at {_every(rest, 'any')}, more often than without them."
    shares = sorted(found.stats.mean for found in told)
    share = measure(finding.key).show(shares[-1])
    where = _every(told, "every") if not rest else _names(told)
    other = f"; at {_names(rest)} no more often than without the features" if rest else ""
    most = f"up to {share}" if shares[0] < shares[-1] else share
    return f"The label of {most} of the pictures is read from the features at {where}{other}."


def evidence(finding: Finding, verdict: Verdict) -> str:
    """Give the figures that the headline rests on: the most and the least that is told, the controls, a ceiling."""
    if not finding.layers:
        return ""
    scale = measure(finding.key)
    best = max(finding.layers, key=lambda found: found.stats.mean)
    least = min(finding.layers, key=lambda found: found.stats.mean)
    n = min(found.stats.n for found in finding.layers)
    figures = [_figure(best, verdict, scale, "")]
    figures += [_figure(least, verdict, scale, verdict.attacker(best.best))] if least is not best else []
    return " ".join(
        [
            f"On {text.counted(n, 'picture')}, {text.listing(figures)}.",
            _controls(finding, scale),
            *_ceilings(best, scale),
            *(_rebuilding(best, finding, verdict, scale) if finding.kind == "labels" else []),
            *([f"Only n\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}{n}: an indication."] if n < FEW else []),
        ]
    )


def advice(finding: Finding) -> str:
    """Say where what is told ends."""
    if not finding.told:
        return ""
    what = "What the pictures show can be put into words" if finding.kind == "captions" else "Labels can be read"
    deepest = max(index for index, found in enumerate(finding.layers) if found.told)
    last = finding.layers[deepest]
    if deepest == len(finding.layers) - 1:
        return f"{what} even at {last.layer}, the deepest layer audited: protect what is sent."
    return f"{what} up to {last.layer}; from {finding.layers[deepest + 1].layer} on these attacks gained nothing."


def caveats(found: Sequence[Finding], verdict: Verdict, pictured: Verdict | None) -> tuple[str, ...]:
    """Say how sure all of it is, most important first; `pictured` is the verdict on the pictures alone."""
    judged = [finding for finding in found if finding.layers]
    said = [] if pictured is None else list(words.caveats(pictured))
    if not judged:
        return tuple(said)
    if not said:
        said.append("The headline is the worst of the attacks that were run; a stronger attack may recover more.")
        n = min(layer.stats.n for finding in judged for layer in finding.layers)
        if n < FEW:
            said.append(f"With only {text.counted(n, 'picture')} every figure may move; run at least {FEW}.")
    if any(finding.kind == "captions" for finding in judged):
        said.append("A caption can be right in words that no reference has, and share words with one by chance.")
    said += [sentence for finding in judged for sentence in _least(finding)]
    narrower = [] if pictured is None else words.unequal(pictured)
    return (*(sentence for sentence in said if sentence not in narrower), *words.unequal(verdict))


def _least(finding: Finding) -> list[str]:
    """Say where an adapter read defended leaks that had learned on others."""
    layers = [found.layer for found in finding.layers if found.best.spec.learned_undefended]
    if not layers:
        return []
    return [
        f"What {finding.kind} say at {text.listing(layers)} is a lower bound: the adapter learned on leaks without the "
        "defense, and an attacker who learns on defended ones may get more."
    ]


def line(found: Found, key: str) -> str:
    """Return a layer's score beside its strongest control, in few words."""
    scale = measure(key)
    control = "" if found.control is None else f", control {scale.show(found.control[1].mean)}"
    return f"{scale.label} {scale.show(found.stats.mean)}{control}"


def _figure(found: Found, verdict: Verdict, scale: Measure, named: str) -> str:
    """One clause a layer; what the first has said, the other leaves out."""
    value, interval = scale.with_unit(found.stats.mean), scale.interval(found.stats)
    attack = verdict.attacker(found.best)
    figures = f"{value} ({interval})" if named else f"{scale.label} {value} (95{text.NARROW}% interval {interval})"
    return f"{figures} at {found.layer}{'' if attack == named else f' with {attack}'}"


def _controls(finding: Finding, scale: Measure) -> str:
    found = [layer.control for layer in finding.layers if layer.control is not None]
    if not found:
        return "No control was recorded: how much of this an attacker without the features reaches is not known."
    name, stats = max(found, key=lambda item: scale.leakage(item[1].mean))
    return f"Without the features it would be {scale.with_unit(stats.mean)} at best ({control_name(name)})."


def _ceilings(best: Found, scale: Measure) -> list[str]:
    ceiling = highest_ceiling(best.best, scale.key)
    if ceiling is None or ceiling[0] != "human":
        return []
    return [f"A person who sees the picture reaches {scale.with_unit(ceiling[1].mean)}."]


def _rebuilding(best: Found, finding: Finding, verdict: Verdict, scale: Measure) -> list[str]:
    """What comes of rebuilding the picture first, and asking a judge."""
    cell = rebuilt(verdict, best.layer, finding.key)
    if cell is None:
        return []
    value = scale.with_unit(cell.summary[finding.key].mean)
    ceiling = highest_ceiling(cell, finding.key)
    most = "" if ceiling is None else f", of the originals {scale.with_unit(ceiling[1].mean)}"
    return [f"Of the pictures that {verdict.attacker(cell)} rebuilds there the judge gives the label of {value}{most}."]


def _names(layers: Sequence[Found]) -> str:
    return text.listing([found.layer for found in layers])


def _every(layers: Sequence[Found], word: str) -> str:
    if len(layers) == 1:
        return f"{layers[0].layer}, the one layer audited"
    return f"{word} layer audited, {layers[0].layer} to {layers[-1].layer}"
