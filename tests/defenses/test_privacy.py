"""(epsilon, delta) of clipping and Gaussian noise against the formula of Balle and Wang."""

from __future__ import annotations

import math
import sys
from dataclasses import replace

import pytest
from scipy.optimize import brentq
from scipy.stats import norm

from seepage.defenses import pipeline
from seepage.defenses.privacy import DELTA, NoAccountantError, guarantee


def analytic(sensitivity: float, sigma: float) -> float:
    """Theorem 8 of Balle & Wang (ICML 2018), solved for epsilon."""
    a, b = sensitivity / (2 * sigma), sigma / sensitivity

    def off(epsilon: float) -> float:
        return norm.cdf(a - epsilon * b) - math.exp(epsilon) * norm.cdf(-a - epsilon * b) - DELTA

    return brentq(off, 0, 200)


@pytest.mark.parametrize("sends", [1, 16])
@pytest.mark.parametrize(("clip", "bound"), [("clip:limit=0.5", 0.5), ("clip:limit=0.1,by=value", 0.1 * math.sqrt(12))])
def test_epsilon_is_the_analytic_one(clip: str, bound: float, sends: int) -> None:
    pytest.importorskip("opacus")
    found = guarantee(pipeline([clip, "gaussian:sigma=2", "quantize"]), (3, 2, 2), sends)
    assert found.epsilon == pytest.approx(analytic(2 * bound * math.sqrt(sends), 2), rel=1e-4)
    assert (found.stage, found.delta) == (1, 1e-5)


def test_nothing_is_promised_where_nothing_is_guaranteed() -> None:
    pytest.importorskip("opacus")
    for texts in (["gaussian"], ["gaussian", "clip"], ["clip", "quantize", "gaussian"], ["clip", "laplace"],
                  ["clip", "gaussian:sigma=0"]):  # fmt: skip
        assert guarantee(pipeline(texts), (4,), 1) is None
    assert guarantee(pipeline(["clip:limit=1", "gaussian:sigma=1e-3"]), (4,), 1).epsilon == math.inf
    both = guarantee(pipeline(["clip:limit=9", "gaussian", "clip:limit=0.1", "gaussian"]), (4,), 1)
    assert both == replace(guarantee(pipeline(["clip:limit=0.1", "gaussian"]), (4,), 1), stage=3), "the better of two"
    assert guarantee(pipeline(["clip:limit=1e-9", "gaussian:sigma=1"]), (4,), 1).epsilon == 0


def test_without_the_library_the_reason_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("opacus.accountants")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "opacus", None)
    with pytest.raises(NoAccountantError, match=r"seepage\[dp\]"):
        guarantee(pipeline(["clip", "gaussian"]), (4,), 1)
