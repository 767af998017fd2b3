"""What a sweep is read from, what dominates what, and how far beyond the worst seen the worst may lie."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from seepage.report.scatter import stairs
from seepage.studies.frontier import front
from seepage.studies.leakage import decile_interval, wilson
from seepage.studies.limits import LimitError, amount, read, require_cost
from seepage.studies.sweep import DEFAULTS, Setting, SweepError, settings, strengths
from seepage.types import SeepageError


def test_each_value_is_a_strength_and_a_plus_joins_stages() -> None:
    assert strengths("gaussian:sigma=0.1,1e+3") == [
        ("gaussian:sigma=0.1,relative=false",),
        ("gaussian:sigma=1000,relative=false",),
    ]
    found = strengths("clip:limit=1,2 + quantize:bits=8,4")
    assert [tuple(stage.partition(",")[0] for stage in pair) for pair in found] == list(
        itertools.product(("clip:limit=1", "clip:limit=2"), ("quantize:bits=8", "quantize:bits=4"))
    )
    assert strengths("none") == [()]
    assert len(settings((), ())) == 1 + sum(len(strengths(text)) for text in DEFAULTS)
    both = settings(["none", "prune"], ["fp16", "int8"])
    assert [item.wire for item in both] == ["fp16", "fp16", "int8", "int8"]
    assert both[0] == Setting((), "fp16")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("gausian:sigma=1", "did you mean 'gaussian'"),
        ("gaussian:sigma=-1", "above 0|at least 0"),
        ("gaussian:sigma=nan", "finite"),
        ("gaussian:1,2", "expected NAME:key=value"),
        ("gaussian:sigma=1,sigma=2", "set twice"),
        ("mask+gaussian", "mask comes last"),
    ],
)
def test_a_sweep_that_cannot_be_read_says_why(text: str, said: str) -> None:
    with pytest.raises(SeepageError, match=said):
        strengths(text)
    assert issubclass(SweepError, SeepageError)


def test_a_point_leads_where_no_other_is_nowhere_worse_and_somewhere_better() -> None:
    assert front([(1.0, 2.0), (2.0, 1.0), (2.0, 2.0), (1.0, 2.0)]) == [True, True, False, True]
    assert front([(math.nan, 0.0), (1.0, 1.0)]) == [False, True]
    rows = np.random.default_rng(0).integers(0, 5, (60, 3)).tolist()
    slow = [not any(all(a <= b for a, b in zip(other, row)) and other != row for other in rows) for row in rows]
    assert front(rows) == slow
    assert 0 < sum(slow) < 60
    points = [(3.0, 1.0), (1.0, 5.0), (2.0, 5.0), (2.0, 2.0), (4.0, 1.0)]
    assert stairs(points) == [1, 3, 0]
    assert [points[row] for row in stairs(points)] == [p for p, lead in sorted(zip(points, front(points))) if lead]


def test_what_was_not_seen_may_still_be() -> None:
    """Wilson's interval has the closed form z^2 / (n + z^2) at nothing seen; of ten values the worst is the bound."""
    for n in (4, 50):
        assert wilson(0.0, n) == (pytest.approx(0.0, abs=1e-12), pytest.approx(3.8415 / (n + 3.8415), abs=1e-4))
        assert wilson(1.0, n)[0] == pytest.approx(1 - wilson(0.0, n)[1])
    assert wilson(0.5, 10) == (pytest.approx(0.2366, abs=1e-4), pytest.approx(0.7634, abs=1e-4))
    assert decile_interval([1.0, 9.0, 3.0]) == (1.0, 9.0)
    values = np.random.default_rng(1).normal(size=400)
    tops = np.sort(values)[-40:]
    low, high = decile_interval(values.tolist())
    assert tops.mean() - 3 * tops.std() < low < tops.mean() < high < tops.mean() + 3 * tops.std()
    assert all(map(math.isnan, decile_interval([1.0, math.nan])))


def test_limits_are_read_with_their_suffixes() -> None:
    assert [amount(text) for text in ("200k", "1.5M", "2GB", "12", "1e3", "7kB")] == [2e5, 1.5e6, 2e9, 12, 1e3, 7e3]
    (limit,) = read({"max-bytes": "200k", "max-psnr": None})
    assert (limit.value, limit.holds(2e5), limit.holds(200_001), limit.holds(None)) == (2e5, True, False, False)
    (least,) = read({"min-utility": "0.9"})
    assert (least.holds(0.95), least.holds(0.85), least.excess(0.85)) == (True, False, pytest.approx(0.05))
    assert not least.holds(math.nan)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({}, "no limit is given"),
        ({"max-psnr": "nan"}, "finite number"),
        ({"max-psnr": "-3"}, "from 0 to 160"),
        ({"min-utility": "1.2"}, "from 0 to 1"),
        ({"max-top1": "inf"}, "finite number"),
        ({"max-bytes": "200x"}, "such as 200k"),
        ({"max-bytes": "-5k"}, "at least 0"),
        ({"max-device-macs": "0"}, "leaves nothing"),
    ],
)
def test_limits_that_make_no_sense_are_refused(asked: dict[str, str], said: str) -> None:
    with pytest.raises(LimitError, match=said):
        read(asked)
    with pytest.raises(LimitError, match="did you mean 'bytes'"):
        require_cost("bites")
