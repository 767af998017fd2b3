"""A decision in words: what was advised, how sure that is, what was left out, or which limit cannot be kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from . import text
from .frontier import LOWER_BOUND, setting

COLUMNS = ("layer", "defense", "verdict", "leaks", "utility", "bytes", "device", "ms")
_STATUS = {
    "advised": "advised",
    "refused": "breaks",
    "struck": "struck: breaks",
    "unmeasured": "not known",
    "unconfirmed": "not confirmed",
    "skipped": "costs more",
}
_COSTS = {
    "device-macs": "multiply-adds on the device",
    "bytes": "bytes a picture",
    "milliseconds": "milliseconds on the device",
}

_DECILES, _FEW = ("max-psnr", "max-ssim"), 10
_NAMED = 3

Record = Mapping[str, Any]


def sentences(record: Record) -> list[str]:
    """Return the decision: first the answer, then how far it may be trusted and what was not looked at."""
    counts = Counter(row["status"] for row in record["rows"])
    found = _advised(record, record["answer"]) if record["answer"] else _nothing(record)
    looked = len(record["rows"]) - counts["skipped"] - counts["unconfirmed"]
    screened = sum(row["stage"] != "" for row in record["rows"])
    told = [f"{looked} of {text.counted(len(record['rows']), 'candidate')} looked at, {screened} of them attacked"]
    if counts["struck"]:
        told.append(f"{counts['struck']} struck in confirmation, by the stronger attacks")
    if counts["skipped"]:
        told.append(f"{counts['skipped']} skipped, for costing more than the one advised")
    if counts["unmeasured"]:
        told.append(f"of {counts['unmeasured']} not known whether a limit is kept")
    if counts["unconfirmed"]:
        told.append(f"{counts['unconfirmed']} not looked at, since as many were struck as --confirm lets be tried")
    found.append("; ".join(told) + ".")
    found += _unknown(record)
    cheaper = [row for row in record["rows"] if row["status"] in ("refused", "struck")]
    if record["answer"] and cheaper:
        broken = Counter(f"--{key}" for row in cheaper for key in row["fails"])
        named = [f"{name} ({text.counted(count, 'candidate')})" for name, count in broken.most_common()]
        found.append(f"What costs no more breaks {text.listing(named)}.")
    return found


def rows(record: Record) -> list[tuple[str, ...]]:
    """Return each candidate as a row under `COLUMNS`, the cheapest first."""
    units = {limit["key"]: limit["unit"] for limit in record["limits"]}
    found: list[tuple[str, ...]] = []
    for row in record["rows"]:
        verdict = _STATUS[row["status"]]
        if row["fails"] and row["status"] in ("refused", "struck"):
            verdict += f" {text.listing(['--' + key for key in row['fails']])}"
        elif row["status"] in ("refused", "unmeasured"):
            verdict = f"not known: {text.listing(['--' + key for key in row['unknown']])}"
        leaks = [
            f"{key.partition('-')[2]} {'≥ ' if worst['lower_bound'] else ''}{_value(row['values'][key], units[key])}"
            for key, worst in row["leaks"].items()
        ]
        share = row["macs_before"] / max(row["macs_before"] + row["macs_after"], 1)
        kept = row["utility"].get("agreement", row["utility"].get("cosine"))
        costs = (text.percent(kept, 1), text.size(row["bytes"]), text.share(share))
        shown = ", ".join(leaks) or text.NONE
        found.append((row["layer"], setting(row), verdict, shown, *costs, text.number(row["device_ms"]["median"], 1)))
    return found


def _advised(record: Record, answer: Record) -> list[str]:
    units = {limit["key"]: limit["unit"] for limit in record["limits"]}
    limits = {limit["key"]: limit["value"] for limit in record["limits"]}
    cost = {"device-macs": answer["macs_before"], "bytes": answer["bytes"]}.get(record["minimise"])
    least = text.significant(answer["device_ms"]["median"]) if cost is None else f"{cost:,}".replace(",", text.NARROW)
    found = [
        f"Cut {record['name']} at {answer['layer']}, {setting(answer)}: of the candidates that keep to every limit the "
        f"one with the fewest {_COSTS[record['minimise']]}, {least}."
    ]
    for key, worst in answer["leaks"].items():
        found.append(
            f"--{key} {_value(limits[key], units[key])}: the worst is {_value(_central(key, worst), units[key])}, "
            f"the upper end of its 95{text.NARROW}% interval {_value(answer['values'][key], units[key])}, which "
            f"has to keep to it; {_tested(worst)}."
        )
        if worst["lower_bound"]:
            found.append(f"Of --{key} no more is known than that: {LOWER_BOUND}.")
    if any(key in _DECILES and worst["n"] <= _FEW for key, worst in answer["leaks"].items()):
        found.append(
            f"Of {_FEW} pictures or fewer that end is the worst picture itself, and nothing beyond it was seen: more "
            "pictures make it surer."
        )
    for key, value in answer["values"].items():
        if key not in answer["leaks"]:
            found.append(f"--{key} {_value(limits[key], units[key])}: {_value(value, units[key])}.")
    if "min-utility" in limits:
        found.append(f"Utility is the mean over {text.counted(record['n'], 'picture')}, not the end of an interval.")
    if answer["unrun"]:
        found.append(f"Against it could not be run: {'; '.join(answer['unrun'])}.")
    found.append(
        "It holds for these attacks and pictures: audit the advised cut on others before it is relied on. A limit that "
        "is kept is the failure of the attacks that were run, not a proof of privacy."
    )
    return found


def _nothing(record: Record) -> list[str]:
    found = ["Nothing satisfies the limits."]
    for miss in record["unmet"]:
        limit = f"--{miss['key']} {_value(miss['limit'], miss['unit'])}"
        where = f"{miss['nearest']['layer']}, {setting(miss['nearest'])}"
        if miss["value"] is None:
            found.append(f"{limit} is not known to be kept: at {where} {miss['reason']}.")
        elif miss["alone"]:
            measured = " measured" if miss["among"] < len(record["rows"]) else ""
            among = text.counted(miss["among"], "candidate") + measured
            found.append(
                f"{limit} cannot be met by any of {among}: the nearest, {where}, has {_beyond(miss)}{_rests_on(miss)}."
            )
        else:
            found.append(
                f"Each limit is kept by some of those looked at, all by none. The nearest, {where}, breaks {limit}: "
                f"{_beyond(miss)}{_rests_on(miss)}."
            )
        if miss.get("lower_bound"):
            found.append(f"Of --{miss['key']} no more is known than that: {LOWER_BOUND}.")
    if not record["unmet"]:
        found.append("No candidate was confirmed.")
    return found


def _beyond(miss: Record) -> str:
    return f"{_value(miss['value'], miss['unit'])}, {_value(miss['excess'], miss['unit'])} beyond it"


def _rests_on(miss: Record) -> str:
    """Say of a miss which number was held to the limit, the interval, of how many pictures and by which attack."""
    if "low" not in miss:
        return f"; the mean, n = {miss['n']}" if "n" in miss else ""
    low = _value(miss["low"], miss["unit"]).removesuffix(f"{text.NARROW}{miss['unit']}")
    ends = f"{low} to {_value(miss['high'], miss['unit'])}"
    if "middle" in miss:
        how = "in confirmation" if miss["confirmed"] else "in the screen alone"
        return (
            f"; that is the upper end of the 95{text.NARROW}% interval, {ends}, of the worst, "
            f"{_value(miss['middle'], miss['unit'])}; {_tested(miss)}, {how}, effort {miss['stage']}"
        )
    if "n" in miss:
        return f"; the mean, 95{text.NARROW}% interval {ends}, n = {miss['n']}"
    return f"; the median of runs that took {ends}"


def _tested(worst: Record) -> str:
    known = "" if worst["attacker"] == "none" else f" ({worst['attacker']})"
    failed = f", {worst['n_failed']} failed" if worst["n_failed"] else ""
    return f"by {worst['attack'].partition(':')[0]}{known}, n = {worst['n']}{failed}"


def _unknown(record: Record) -> list[str]:
    """Say at which candidates a limit was not measured, and why, once for each reason."""
    told: dict[tuple[str, str], list[str]] = {}
    for row in record["rows"]:
        if row["status"] in ("refused", "unmeasured"):
            for key, reason in row["unknown"].items():
                told.setdefault((key, reason), []).append(f"{row['layer']}, {setting(row)}")
    return [
        f"Whether --{key} is kept is not known at {_places(where)}: {reason}." for (key, reason), where in told.items()
    ]


def _places(where: list[str]) -> str:
    more = len(where) - _NAMED
    return "; ".join(where if more <= 0 else [*where[:_NAMED], f"{more} more"])


def _central(key: str, worst: Record) -> float | None:
    value: float | None = worst["recovery"] if key == "max-caption-gain" else worst["worst"]
    return value


def _value(value: float | None, unit: str) -> str:
    if value is None:
        return "unknown"
    if unit == "B":
        return text.size(round(value))
    if unit == "MAC":
        return text.multiply_adds(value)
    digits = 1 if unit == "dB" else 2 if unit == "ms" else 3
    # A limit of next to nothing is no limit of nothing.
    shown = text.significant(value) if 0 < abs(value) < 10**-digits else text.number(value, digits)
    return f"{shown}{text.NARROW}{unit}" if unit else shown
