"""The verdict in sentences that a stranger reads in ten seconds."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from ..checks import FEW
from . import text
from .glossary import Measure, control_name, measure
from .limits import below
from .verdict import LayerVerdict, Verdict, beats_controls

NOTHING = "Nothing was run: there is nothing to report."

_LEAKS = {"recognisable": "recognisable", "partly": "partly"}


def setting_name(verdict: Verdict, among: Sequence[Verdict]) -> str:
    """Return what tells a setting from the others of a report; empty where it is the only one."""
    if len(among) < 2:
        return ""
    mine, others = verdict.setting, [other.setting for other in among]
    parts = [text.defenses(mine.defenses) or "no defense"] if len({o.defenses for o in others}) > 1 else []
    for field in ("victim", "size", "data", "wire", "weights_sha256", "manifest_sha256"):
        values = {getattr(other, field) for other in others}
        if len(values) < 2 or (field.endswith("sha256") and parts):
            continue
        value = str(getattr(mine, field))
        parts.append(f"{value} px" if field == "size" else value[:12] if field.endswith("sha256") else value)
    return ", ".join(parts)


def headline(verdict: Verdict) -> str:
    """Say from which layers recognisable pictures come back."""
    if not verdict.known:
        return _unknown(verdict)
    states = {layer.state for layer in verdict.known}
    if states == {"control"}:
        return (
            f"The attacks recover nothing from {_every(verdict.known, 'any')}: "
            "no more than an attacker without the features reaches."
        )
    if states <= {"hidden", "control"}:
        return f"The attacks recover no recognisable picture from {_every(verdict.known, 'any')}."
    if states == {"recognisable"}:
        return f"The attacks recover recognisable pictures from {_every(verdict.known, 'every')}."
    runs = [
        (kind, tuple(group))
        for kind, group in itertools.groupby(verdict.known, lambda layer: _LEAKS.get(layer.state, "none"))
    ]
    kinds = [kind for kind, _ in runs]
    falling = [kind for kind in ("recognisable", "partly", "none") if kind in kinds] == kinds
    said = [
        _clause(kind, layers, kinds[:index], len(runs) - index - 1, falling)
        for index, (kind, layers) in enumerate(runs)
    ]
    return f"The attacks recover {', and '.join(filter(None, (', '.join(said[:-1]), said[-1])))}."


def evidence(verdict: Verdict) -> str:
    """Give the figures that the headline rests on, what the controls reach, and how many pictures that is."""
    quoted = _quoted(verdict)
    if not quoted:
        return ""
    scale = measure(verdict.threshold.metric)
    n = verdict.pictures
    attacks = {verdict.attack(cell) for cell in verdict.cells if cell.status == "done"}
    which = "the one attack run" if len(attacks) == 1 else f"the strongest of {len(attacks)} attacks"
    sense = "at least" if scale.higher_leaks else "at most"
    return " ".join(
        [
            f"On {text.counted(n, 'picture')}, {which} reaches {text.listing(_figures(quoted, verdict, scale))}.",
            _controls(verdict, scale),
            f"Recognisable means {scale.label} of {sense} {scale.limit(verdict.threshold.value)}.",
            *([f"Only n\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}{n}: an indication."] if n < FEW else []),
        ]
    )


def caveats(verdict: Verdict) -> tuple[str, ...]:
    """Say how sure the verdict is, most important first."""
    said = []
    n = verdict.pictures
    if verdict.known:
        said.append("The headline is the worst of the attacks that were run; a stronger attack may recover more.")
        if n < FEW:
            said.append(f"With only {text.counted(n, 'picture')} every figure may move; run at least {FEW}.")
        said.append("Recognisable is a model's word: a person may make out more.")
        said += _close(verdict)
        said += unequal(verdict)
        said += below([layer.best for layer in verdict.known if layer.best is not None])
    silent = [layer.layer for layer in verdict.layers if layer.state == "unknown"]
    if silent and verdict.known:
        said.append(f"Nothing is known of {text.listing(silent)}: no attack there gave a result to judge.")
    return tuple(said)


def advice(verdict: Verdict) -> str:
    """Say what to do."""
    known = verdict.known
    if not known:
        return ""
    worst = max((index for index, layer in enumerate(known) if _leaks(layer)), default=-1)
    safe = known[worst + 1 :]
    if not safe:
        return "Cut deeper than the layers audited here, or protect what is sent: none of them keeps pictures private."
    first = next((layer for layer in safe if not layer.close), safe[0])
    if worst < 0:
        lead = "None of these layers gave recognisable pictures to these attacks"
    else:
        lead = f"Cut at {first.layer} or deeper{_costs(first)}, or protect what is sent before it"
    return f"{lead}. Not recognisable is not private{_label_still(first)}."


def _unknown(verdict: Verdict) -> str:
    """Without the deciding metric: at least what is better than a control, and what is not."""
    scored = [layer for layer in verdict.layers if layer.best is not None and "mse" in layer.best.summary]
    if not any(cell.status == "done" for cell in verdict.cells):
        return "No attack finished: nothing is known of what leaks."
    reason = "Whether pictures are recognisable was not judged: it takes MS-SSIM or SSIM."
    better = [layer.layer for layer in scored if layer.best is not None and beats_controls(layer.best, "mse")]
    rest = [layer.layer for layer in scored if layer.layer not in better]
    said = [f"better than every control at {text.listing(better)}"] if better else []
    said += [f"no better than a control at {text.listing(rest)}"] if rest else []
    return f"{reason} By MSE the recoveries are {', and '.join(said)}." if said else reason


def _every(layers: Sequence[LayerVerdict], word: str) -> str:
    if len(layers) == 1:
        return f"{layers[0].layer}, the one layer audited"
    return f"{word} layer audited, {layers[0].layer} to {layers[-1].layer}"


def _clause(kind: str, layers: Sequence[LayerVerdict], before: Sequence[str], after: int, falling: bool) -> str:
    """One run of layers. Where leakage falls with depth the turning points say it all, else every layer is named."""
    noun = {"recognisable": "recognisable pictures", "partly": "some", "none": "none"}[kind]
    if not before:
        noun = {"recognisable": noun, "partly": "some recognisable pictures", "none": "no recognisable picture"}[kind]
    where = f"at {text.listing([_of(layer) if kind == 'partly' else layer.layer for layer in layers])}"
    if falling and len(layers) > 1:
        if kind == "recognisable":
            where = f"up to {layers[-1].layer}"
        elif kind == "none" and not after:
            where = f"from {layers[0].layer} on"
    return f"{'again ' if kind in before else ''}{noun} {where}"


def _of(layer: LayerVerdict) -> str:
    return f"{layer.layer} ({layer.passing} of {layer.counted})"


def _quoted(verdict: Verdict) -> list[LayerVerdict]:
    """The layers at which the verdict turns: the deepest that leaks and the next; else the first."""
    known = verdict.known
    deepest = max((index for index, layer in enumerate(known) if _leaks(layer)), default=None)
    if deepest is None:
        return list(known[:1])
    return list(known[deepest : deepest + 2])


def _leaks(layer: LayerVerdict) -> bool:
    return layer.state in _LEAKS


def _figures(quoted: Sequence[LayerVerdict], verdict: Verdict, scale: Measure) -> list[str]:
    """One clause a layer; what the first has said, the others leave out."""
    said: list[str] = []
    named = ""
    for layer in quoted:
        assert layer.stats is not None
        assert layer.best is not None
        attack = verdict.attacker(layer.best)
        value, interval = scale.with_unit(layer.stats.mean), scale.interval(layer.stats)
        figures = f"{value} ({interval})" if said else f"{scale.label} {value} (95{text.NARROW}% interval {interval})"
        said.append(f"{figures} at {layer.layer}{'' if attack == named else f' with {attack}'}")
        named = attack
    return said


def _controls(verdict: Verdict, scale: Measure) -> str:
    found = [layer.control for layer in verdict.known if layer.control is not None]
    if not found:
        return "No control was recorded: how much of this an attacker without the features reaches is not known."
    name, stats = max(found, key=lambda item: scale.leakage(item[1].mean))
    return f"Without the features it would be {scale.with_unit(stats.mean)} at best ({control_name(name)})."


def _close(verdict: Verdict) -> list[str]:
    near = [layer.layer for layer in verdict.known if layer.close]
    if not near:
        return []
    return [f"Too close to call at {text.listing(near)}: the intervals of the score and of the threshold overlap."]


def unequal(verdict: Verdict) -> list[str]:
    """Say where attackers of different means are compared."""
    means = sorted({(cell.spec.access, cell.spec.auxiliary) for cell in verdict.cells if cell.status == "done"})
    if len(means) < 2:
        return []
    said = text.listing([f"{access} with {_pictures(auxiliary)}" for access, auxiliary in means])
    return [f"The attackers differ in means: {said}."]


def _pictures(auxiliary: str) -> str:
    return "no pictures of its own" if auxiliary == "none" else f"{auxiliary} pictures"


def _costs(layer: LayerVerdict) -> str:
    parts = []
    if layer.share is not None:
        parts.append(f"{text.share(layer.share)} of the work on the device")
    sent = next((cell.bytes_per_image for cell in layer.cells if cell.bytes_per_image is not None), None)
    if sent is not None:
        parts.append(f"{text.size(sent)} sent a picture")
    return f" ({', '.join(parts)})" if parts else ""


def _label_still(layer: LayerVerdict) -> str:
    """What a recovery that nobody recognises may still give away: its label."""
    if layer.best is None or "agreement" not in layer.best.summary:
        return ""
    mean = layer.best.summary["agreement"].mean
    known = [scores["agreement"].mean for scores in layer.best.controls.values() if "agreement" in scores]
    if not math.isfinite(mean) or mean <= max(known, default=0):
        return ""
    return f": at {layer.layer} another model still gives {text.percent(mean)} of the recoveries the original's label"
