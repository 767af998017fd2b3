"""The paper's claims beside what was measured here: docs/claims.md, made of the results of the other benchmarks.

    python benchmarks/claims.py

Reads the results named in `READ` and measures nothing itself. A claim whose
figures are not there is `not tested`. Where a claim is about many victims, depths or attacks it is tested row by row:
reproduced where every row bears it out, contradicted where none does (`not shown` where two attacks are compared and no
row tells them apart), partly otherwise; a row counts only if the 95 %
intervals of what is compared keep apart. What is no mean over pictures has no interval, and counts as it is.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import caption_claims
import factor_claims
from claim_verdicts import NOT_TESTED, Interval, Results, Verdict, below, counted, shown

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parents[1] / "docs" / "claims.md"
FORMS = ("peel:form=constrained", "peel:form=penalty")
CHAINS = ("peel", *FORMS, *(f"{form},passes=1000" for form in FORMS))
BASELINES = ("joint", "rmle", "deep-image-prior", "divide", "decoder")
READ = (
    *("blocks", "factors", "peel_block", "peel_tables", "peel_figures"),
    *("captions", "labels", "noise", "encrypted"),
)
# What the paper compares with: embedding inversion and inversion through a GAN.
PUBLISHED = ("rmle", "gan")
# The metric that is asked of a face judge, and how its name begins where the adapted one was asked.
ASKED, JUDGE = "knn_distance", "face_judge.py:"
# The class scores are no stage.
SCORES = "linear"
RESTART = "restart (the leak of every stage)"


def rows(results: Results) -> dict[str, dict[str, Mapping[str, Any]]]:
    """Return the finished cells of peel_tables.json: row, then attack."""
    found: dict[str, dict[str, Mapping[str, Any]]] = {}
    for one in results.get("peel_tables", {}).get("rows", []):
        if one["status"] == "done":
            found.setdefault(one["row"], {})[one["attack"]] = one
    return found


def mse(cell: Mapping[str, Any]) -> Interval:
    """Return mean, low and high of a cell's MSE."""
    mean, low, high = cell["figures"]["mse"]
    return mean, low, high


def best(cells: Mapping[str, Mapping[str, Any]], names: Sequence[str]) -> Mapping[str, Any] | None:
    """Return the cell of least MSE among `names`."""
    return min((cells[name] for name in names if name in cells), key=lambda cell: mse(cell)[0], default=None)


def _pairs(results: Results, names: Sequence[str], others: Sequence[str]) -> list[tuple[str, Any, Any]]:
    pairs = [(row, best(cells, names), best(cells, others)) for row, cells in rows(results).items()]
    return [(row, one, other) for row, one, other in pairs if one is not None and other is not None]


def order_of_magnitude(results: Results, names: Sequence[str], others: Sequence[str]) -> Verdict:
    """Is the MSE of the best of `names` a tenth of that of the best of `others`?"""
    pairs = _pairs(results, names, others)
    if not pairs:
        return NOT_TESTED
    ratio = statistics.median(mse(one)[0] / mse(other)[0] for _, one, other in pairs)
    counts = counted([below(mse(one), mse(other), 10) for _, one, other in pairs], "a tenth")
    return Verdict(f"MSE over theirs: {ratio:.2g} at the median; {counts.ours} rows", counts.verdict)


def ahead(results: Results, other: str, metric: str) -> Verdict:
    """Is `peel` under another attack in a metric of which less is better?"""
    outcomes, against, told = [], [], []
    for cells in rows(results).values():
        if all(name in cells and metric in cells[name]["figures"] for name in ("peel", other)):
            first, second = (tuple(cells[name]["figures"][metric]) for name in ("peel", other))
            outcomes.append(below(first, second))
            against.append(below(second, first))
            told.append(f"{shown(first, '.3g')} against {shown(second, '.3g')}")
    counts = counted(outcomes, f"less than {other}'s", against)
    return Verdict(f"{counts.ours} rows ({'; '.join(told)})", counts.verdict) if outcomes else counts


def above_control(results: Results) -> Verdict:
    """Does the walk from one leak come nearer than the best picture without one?"""
    outcomes = []
    for cells in rows(results).values():
        found = best(cells, CHAINS)
        if found is not None and found["control_mse"] is not None:
            outcomes.append(mse(found)[2] < found["control_mse"])
    counts = counted(outcomes, "its MSE is under the strongest null control's")
    return Verdict(f"{counts.ours} rows", counts.verdict) if outcomes else counts


def fails_deep(results: Results) -> Verdict:
    """Does embedding inversion fall with depth in every network?"""
    depths: dict[str, list[Interval]] = {}
    for cells in rows(results).values():
        if "rmle" in cells and cells["rmle"]["layer"] != SCORES:
            depths.setdefault(cells["rmle"]["group"], []).append(tuple(cells["rmle"]["figures"]["psnr"]))
    told = [f"{group}: {', '.join(map(shown, values))} dB" for group, values in depths.items()]
    outcomes = [below(values[-1], values[0]) for values in depths.values() if len(values) > 1]
    counts = counted(outcomes, "PSNR falls from the first stage to the last")
    return Verdict(f"{counts.ours} networks ({'; '.join(told)})", counts.verdict) if outcomes else counts


def solved(results: Results) -> Verdict:
    """Is a stride-1 block undone nearly exactly?"""
    named = {row["solver"]: row for row in results.get("peel_block", {}).get("rows", []) if row["relative"]}
    if not named:
        return NOT_TESTED
    told = [f"{name} {statistics.median(row['relative']):.1e}" for name, row in named.items()]
    granso = next((row for name, row in named.items() if name.startswith("PyGRANSO")), None)
    verdict = "not tested" if granso is None else "partly"
    if granso is not None and statistics.median(granso["relative"]) <= 0.0114:
        verdict = "reproduced"
    return Verdict("relative error at the median: " + "; ".join(told), verdict)


def noisy_copy(results: Results) -> Verdict:
    """Is a block's output nearer to its input than half of it, in the residual blocks of trained networks?"""
    trained = [row for row in results.get("blocks", ()) if not row["network"].endswith("random")]
    starts = [row["start"] for row in trained if row["keeps_shape"]]
    words = (
        "in blocks that keep their shape, of trained networks, output and input differ by less than half of the input"
    )
    found = counted([start < 0.5 for start in starts], words)
    if not starts:
        return found
    spread = f"; {min(starts):.2f} to {max(starts):.2f} of it, {statistics.median(starts):.2f} at the median"
    return Verdict(found.ours + spread, found.verdict)


def maps(results: Results) -> Verdict:
    """Do the feature maps of every stage come back from the last?"""
    errors = results.get("peel_figures", {}).get("errors", {}).get("chain")
    if not errors:
        return NOT_TESTED
    told = ", ".join(f"{name} {error:.2f}" for name, error in errors.items())
    outcomes = [error < 0.5 for error in errors.values()]
    return Verdict(f"relative error by segment: {told}", counted(outcomes, "").verdict)


CLAIMS: tuple[tuple[str, Callable[[Results], Verdict]], ...] = (
    ("A residual block's output is a noisy copy of its input (the hypothesis)", noisy_copy),
    ("Figure 5: a constrained solver undoes a 5-channel 8 x 8 block to 1.14 %", solved),
    ("Figure 2: embedding inversion fails deep in the network", fails_deep),
    ("Figure 4: feature maps come back stage by stage, from one leak", maps),
    ("One leak and no training data say more than nothing (the attack)", above_control),
    (
        "MSE an order of magnitude under embedding and GAN inversion, walking back from one leak",
        lambda results: order_of_magnitude(results, CHAINS, PUBLISHED),
    ),
    (
        "The same, given the leak of every stage, as the authors' scripts are",
        lambda results: order_of_magnitude(results, (RESTART,), PUBLISHED),
    ),
    (
        "The same from one leak, under every other attack here",
        lambda results: order_of_magnitude(results, CHAINS, BASELINES),
    ),
    ("Often ahead of GAN-based inversion in MSE", lambda results: ahead(results, "gan", "mse")),
    ("Often ahead of GAN-based inversion in KNN distance", lambda results: ahead(results, "gan", "knn_distance")),
)


def judged(results: Results) -> tuple[str, ...]:
    """Say whose features KNN distances are measured in: the adapted network's, where every row names it."""
    judges = {one.get("judge", "") for one in results.get("peel_tables", {}).get("rows", []) if ASKED in one["figures"]}
    if judges and all(one.startswith(JUDGE) for one in judges):
        return (
            "The paper measures KNN distances in a face network's features. So do these rows, in those of",
            "EfficientNet-lite0 adapted to faces on other people, a network that never saw the victim: its rank-1",
            "beside the victim's is in `results/face_judge.md`, and what it says of the originals stands in the table.",
        )
    return (
        "The paper measures KNN distances in a face network's features. These rows were measured in those of",
        "EfficientNet-lite0 as it comes, which is no face network and knows people from clean pictures alone",
        "(`results/face_judge.md`); rows measured anew are judged by the same network adapted to faces. What the judge",
        "says of the originals stands in the table.",
    )


def page(results: Results) -> str:
    """Return docs/claims.md."""
    made = ", ".join(sorted(f"`{name}.json`" for name in results)) or "no results"
    lines = [
        "# What the papers claim, and what was measured",
        "",
        f"Made by `python benchmarks/claims.py` from {made}. A row counts where the 95 % intervals of what is compared",
        "keep apart; what is no mean over pictures (a block, a feature map, a control) has none, and counts as it is.",
        "",
        "## PEEL",
        "",
        "The claims are those of PEEL's abstract, captions and figures; its tables' numbers were not at hand, so a",
        "claim is compared with what it says, not with a number, except for Figure 5. Victims, pictures and budgets",
        "differ from the paper's: {doc}`peel` says which problem is solved and in which two readings.",
        "",
        *table([(claim, test(results)) for claim, test in CLAIMS] + factor_claims.told(results)),
        "",
        "The paper studies pooling, activations and first weights as factors, and says of the skip that it is a",
        "primary cause. Networks, pictures and what else was seen of the factors are in {doc}`concepts/factors`.",
        *judged(results),
        "Pictures a row and budgets are in the tables: with few of either a verdict is an indication.",
        "",
    ]
    lines += [
        "## CapRecover",
        "",
        "The paper's victims, language models and pictures were not at hand; these rows are of other networks and",
        "pictures, whose tables stand in {doc}`captions` and {doc}`concepts/defenses`.",
        "",
        *table(caption_claims.told(results)),
        "",
    ]
    for name, title in (("peel_tables", "PEEL beside other attacks"), ("peel_block", "Figure 5")):
        if name in results:
            lines += [f"## {title}", "", "```{include} ../benchmarks/results/" + name + ".md", "```", ""]
    return "\n".join(lines)


def table(told: Sequence[tuple[str, Verdict]]) -> list[str]:
    """Return claims and verdicts as a table."""
    rows = [f"| {claim} | {verdict.ours} | {verdict.verdict} |" for claim, verdict in told]
    return ["| claim | measured here | |", "|---|---|---|", *rows]


def main() -> None:
    """Read the results that there are and write the page."""
    results = {}
    for name in READ:
        path = RESULTS / f"{name}.json"
        if path.exists():
            results[name] = json.loads(path.read_text(encoding="utf-8"))
    PAGE.write_text(page(results), encoding="utf-8")


if __name__ == "__main__":
    main()
