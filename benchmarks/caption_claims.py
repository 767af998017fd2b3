"""What CapRecover claims beside what was measured here: rows of docs/claims.md."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from claim_verdicts import NOT_TESTED, Interval, Results, Verdict, below, counted

THREE, ON, LATE = "caprecover, one for three cuts", "caprecover, run on", "caprecover"
MOBILENET = "zoo/mobilenet_v2"


def scores(results: Results, label: str) -> dict[str, Interval]:
    """Return CIDEr, low and high by cut, of one attack on MobileNetV2, in order of depth."""
    found: dict[str, Interval] = {}
    for one in results.get("captions", {}).get("rows", []):
        if one["victim"] == MOBILENET and one["label"] == label and one["status"] == "done":
            score = one["summary"]["cider"]
            found[one["layer"]] = (score["corpus"], score["ci_low"], score["ci_high"])
    return dict(sorted(found.items(), key=lambda each: int(each[0].rpartition(".")[2])))


def _shown(found: Mapping[str, Interval]) -> str:
    return ", ".join(f"{layer} {score:.3f} [{low:.3f}, {high:.3f}]" for layer, (score, low, high) in found.items())


def rises_with_depth(results: Results) -> Verdict:
    """Does an attack trained at each cut say more at each deeper one? By paired differences over the photographs."""
    rows = [one for one in results.get("captions", {}).get("rows", []) if one["label"] == THREE and "deeper" in one]
    if len(rows) < len(scores(results, THREE)) - 1 or not rows:
        return NOT_TESTED
    counts = counted([one["deeper"]["low"] > 0 for one in rows], "CIDEr rises")
    return Verdict(f"{counts.ours} steps: {_shown(scores(results, THREE))}", counts.verdict)


def early_holds_less(results: Results) -> Verdict:
    """Does a leak say less at an earlier cut where the attacker runs it on?"""
    early, late = scores(results, ON), scores(results, LATE)
    if not early or not late:
        return NOT_TESTED
    (last,) = late.values()
    counts = counted([below(one, last) for one in early.values()], "less is said of an earlier leak, run on,")
    return Verdict(f"{counts.ours} cuts: {_shown({**early, **late})}", counts.verdict)


def labels(results: Results) -> Verdict:
    """Does a late leak give the class of a CIFAR-10 picture away?"""
    best: dict[str, tuple[float, str]] = {}
    for one in results.get("labels", []):
        # A small network of CIFAR's own is no stand-in for a tower that has seen everything.
        if one["status"] == "done" and one["line"][0] != "ResNet-20":
            group, layer, attack = one["line"][:3]
            found = one["summary"]["top1"]["mean"]
            best[group] = max(best.get(group, (0.0, "")), (found, f"{layer}, {attack}"))
    if not best:
        return NOT_TESTED
    shown = "; ".join(f"{group} {100 * found:.1f} % ({where})" for group, (found, where) in best.items())
    # Another tower on lossier files may hold it up by reaching as much, and says nothing against it by staying below.
    verdict = "partly" if any(found >= 0.9271 for found, _ in best.values()) else NOT_TESTED.verdict
    return Verdict(f"no CLIP here; other networks, on lossy files of CIFAR-10: {shown}", verdict)


def noise_protects(results: Results) -> Verdict:
    """Does U[0, 1), added at a layer and removed at the next, keep an eavesdropper who knows of it from anything?"""
    groups: dict[tuple[str, ...], dict[str, Interval]] = {}
    for one in results.get("noise", {}).get("rows", []):
        if one["status"] == "done" and one["scale"] <= 1:
            place = tuple(one[key] for key in ("victim", "layer", "reads", "attack"))
            groups.setdefault(place, {})[one["attacker"]] = tuple(one["value"])
    outcomes, less = [], []
    for place, found in groups.items():
        known = {name: value for name, value in found.items() if name not in ("none", "naive")}
        if "none" in found and known:
            best = max(known, key=lambda name: known[name][0])
            outcomes.append(below(known[best], found["none"]))
            if outcomes[-1]:
                less.append(f"{' '.join(place)}: {known[best][0]:.3g} in place of {found['none'][0]:.3g}")
    counts = counted(outcomes, "whoever knows of it reads less than without noise")
    words = f"{counts.ours} attacks{' (' + '; '.join(less) + ')' if less else ''}; all: `benchmarks/results/noise.md`"
    return Verdict(words, counts.verdict) if outcomes else NOT_TESTED


def ciphertexts(results: Results) -> Verdict:
    """Can a tail be run on encrypted features?"""
    shown = [
        f"{one['tail']['outputs']:,} classes, {one['n']} pictures: top-1 agrees in {100 * one['agreement']:.1f} %, "
        f"{one['seconds']['seconds']['mean']:.2f} s a picture"
        for one in results.get("encrypted", {}).values()
    ]
    return Verdict("; ".join(shown) + "; pooled and linear tails alone", "partly") if shown else NOT_TESTED


CLAIMS: tuple[tuple[str, Callable[[Results], Verdict]], ...] = (
    ("Deeper layers leak more meaning: an attack a layer says more at each deeper one", rises_with_depth),
    ("Deeper layers leak more meaning: earlier leaks hold less", early_holds_less),
    (
        "ResNet-50 of CLIP on COCO2017, layers 1 to 4 and last: CIDEr .19, .31, .55, .68, .90",
        lambda results: Verdict("neither CLIP's weights nor COCO were at hand: `make bench-paper`", "not tested"),
    ),
    ("CIFAR-10 labels from CLIP's ViT: top-1 92.71 %", labels),
    ("Random noise, added at a layer and removed at the next, keeps meaning from leaking", noise_protects),
    ("Homomorphic encryption as the safeguard in the long term", ciphertexts),
)


def told(results: Results) -> list[tuple[str, Verdict]]:
    """Return the table's rows: claim, ours, verdict."""
    return [(claim, test(results)) for claim, test in CLAIMS]
