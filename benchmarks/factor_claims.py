"""What PEEL's authors study as factors beside what was measured here: rows of docs/claims.md."""

from __future__ import annotations

from claim_verdicts import NOT_TESTED, Interval, Results, Verdict, below, counted, shown

Key = tuple[str, str, bool]
"""Level, attack, and whether the weights are trained."""


def levels(results: Results, factor: str) -> dict[Key, Interval]:
    """Return PSNR, low and high, of each level of a factor after the last block of the network."""
    found: dict[Key, Interval] = {}
    for one in results.get("factors", ()):
        if one["factor"] == factor and one["layer"] == "stages.4":
            stats = one["psnr"]
            found[one["level"], one["attack"], one["trained"]] = (stats["mean"], stats["ci_low"], stats["ci_high"])
    return found


def skip_leaks(results: Results) -> Verdict:
    """Is more recovered behind a skip than without it, at equal width, depth and, where trained, accuracy?"""
    found, outcomes, words = levels(results, "skip"), [], []
    for trained in (True, False):
        for attack in ("joint", "rmle"):
            ends = [found.get((level, attack, trained)) for level in ("0", "1")]
            if ends[0] is not None and ends[1] is not None:
                outcomes.append(below(ends[0], ends[1]))
                what = f"{'trained' if trained else 'random'} weights, {attack}"
                words.append(f"{what}: {shown(ends[0])} without, {shown(ends[1])} with")
    if not outcomes:
        return NOT_TESTED
    counts = counted(outcomes, "PSNR is higher with the skip")
    return Verdict(f"{counts.ours} pairs ({'; '.join(words)} dB)", counts.verdict)


def matters(results: Results, factor: str, usual: str) -> Verdict:
    """Does another level of a factor than the usual one change what `joint` recovers, intervals apart?"""
    found = {level: one for (level, attack, _), one in levels(results, factor).items() if attack == "joint"}
    if usual not in found or len(found) < 2:
        return NOT_TESTED
    others = {level: one for level, one in found.items() if level != usual}
    outcomes = [below(one, found[usual]) or below(found[usual], one) for one in others.values()]
    counts = counted(outcomes, f"PSNR is another than with {usual}, {shown(found[usual])} dB,")
    said = ", ".join(f"{level} {shown(one)}" for level, one in others.items())
    return Verdict(f"{counts.ours} others: {said}", counts.verdict)


def told(results: Results) -> list[tuple[str, Verdict]]:
    """Return the claims about factors with their verdicts."""
    return [
        ("The skip connection is a primary cause of leakage", skip_leaks(results)),
        ("Pooling decides what leaks", matters(results, "pooling", "stride")),
        ("The activation decides what leaks", matters(results, "activation", "relu")),
        ("First weights decide what leaks", matters(results, "weights", "kaiming")),
    ]
