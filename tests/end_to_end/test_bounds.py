from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from seepage.audit.bounds import BUDGETS, bound
from seepage.audit.request import Request
from seepage.audit.workbench import Workbench
from seepage.bounds import LEVELS, NaturalPrior
from seepage.schema import Bound, Spec
from seepage.store import Store

Run = Callable[..., tuple[int, str, str]]
MIX = np.array([[0.6, 0.3, 0.1], [0.1, 0.6, 0.3], [0.3, 0.1, 0.6]])


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SEEPAGE_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "bounds"


@pytest.fixture
def bounded(victim: str, folder: Path) -> Callable[..., Bound | None]:
    """What a cell of the tiny victim, cut where it is linear, says of its bound."""
    bench = Workbench(Request(victim, str(folder), layers=("mix",)))
    split = bench.split("mix")

    def found(*defenses: str, effort: str = "standard", wire: str = "fp32", sends: int = 1) -> Bound | None:
        spec = Spec(
            victim=victim,
            weights_sha256=split.weights_sha256,
            layer="mix",
            defenses=defenses,
            wire=wire,
            attack="rmle",
            effort=effort,
            sends=sends,
            data="folder",
            manifest_sha256="",
        )
        return bound(bench, split, spec, [0, 1, 2])

    return found


def closed_form(deviation: float) -> float:
    prior = NaturalPrior((3, 16, 16))
    precision = prior.precision(torch.eye(768, dtype=torch.float64).view(768, 3, 16, 16)).flatten(1).numpy()
    known = np.kron(MIX.T @ MIX, np.eye(256)) / deviation**2 + precision
    return float(np.trace(np.linalg.inv(known)) / 768)


def test_a_standard_audit_says_what_the_jacobian_tells_and_why_there_is_no_bound(
    victim: str, folder: Path, tmp_path: Path, seepage: Run
) -> None:
    for effort in ("quick", "standard", "full"):
        asked = ("--attack", "rmle:steps=2", "--layer", "mix", "--effort", effort, "-o", tmp_path / effort)
        code, _, err = seepage("audit", victim, folder, *asked)
        assert code == 0, err
    (quick,) = Store(tmp_path / "quick").cells().values()
    assert quick.bound is None
    (standard,), (full,) = (Store(tmp_path / effort).cells().values() for effort in ("standard", "full"))
    for cell in (standard, full):
        assert cell.bound.mse is None
        assert "no noise" in cell.bound.reason
    assert (standard.bound.exact, standard.bound.pictures) == (True, 2)
    found = full.bound
    assert (found.exact, found.inputs, found.outputs, found.pictures) == (True, 768, 768, 6)
    values = np.linalg.svd(MIX, compute_uv=False)
    assert (found.spectrum[0], found.spectrum[-1]) == pytest.approx((values[0], values[-1]), rel=1e-4)
    assert found.levels == LEVELS
    assert found.rank.low == found.rank.high == 768
    assert found.condition == pytest.approx(values[0] / values[-1], rel=1e-4)
    assert standard.bound.spectrum == pytest.approx(found.spectrum, rel=1e-4)
    assert found.spectrum_low == found.spectrum == found.spectrum_high


def test_what_is_too_large_to_be_formed_is_estimated(
    bounded: Callable[..., Bound | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = bounded()
    monkeypatch.setitem(BUDGETS, "standard", dataclasses.replace(BUDGETS["standard"], exact_up_to=767))
    found = bounded()
    assert (whole.exact, found.exact) == (True, False)
    assert found.rank.low < 768 <= found.rank.high
    assert found.condition <= whole.condition * 1.001
    assert found.energy.low < whole.energy.value < found.energy.high
    for low, value, high in zip(found.spectrum_low, whole.spectrum, found.spectrum_high, strict=True):
        assert low * 0.999 <= value <= high * 1.001


def test_gaussian_noise_bounds_the_error_as_the_closed_form_says(bounded: Callable[..., Bound], home: Path) -> None:
    found = bounded("gaussian:sigma=0.2")
    wanted = closed_form(0.2)
    assert 0.95 * wanted < found.mse <= found.estimate.value == pytest.approx(wanted, rel=0.02)
    assert found.at_pictures.value == pytest.approx(wanted, rel=0.02)
    dfil = pytest.approx((MIX**2).sum() / 3 / 0.2**2, rel=1e-5)
    assert found.dfil.low == found.dfil.high == found.dfil.value == dfil
    assert "gaussian" in found.noise
    assert "Gaussian" in found.prior
    kept = {path.name: path.stat().st_mtime_ns for path in home.iterdir()}
    assert bounded("gaussian:sigma=0.2") == found
    assert {path.name: path.stat().st_mtime_ns for path in home.iterdir()} == kept
    again = bounded("gaussian:sigma=0.4", sends=4)
    assert again.mse == pytest.approx(found.mse, rel=0.1)
    assert bounded("gaussian:sigma=0.2", "quantize:bits=4").mse == found.mse


def test_quick_computes_leakage_alone_and_says_so(bounded: Callable[..., Bound]) -> None:
    found = bounded("laplace:scale=0.1", effort="quick")
    assert "dFIL alone" in found.reason
    assert found.spectrum == ()
    assert found.rank is None
    assert 0 < found.mse < closed_form(0.1)
    assert found.dfil.value == pytest.approx((MIX**2).sum() / 3 / 0.1**2, rel=0.1)


@pytest.mark.parametrize(
    ("defenses", "wire", "said"),
    [
        (("uniform:scale=0.1",), "fp32", "jumps"),
        (("noise-shift",), "fp32", "jumps"),
        (("quantize:bits=4",), "fp32", "no noise"),
        (("gaussian:sigma=0.1,relative=true",), "fp32", "fitted"),
        ((), "int8", "int8"),
    ],
)
def test_what_has_no_bound_has_a_reason_and_the_spectrum(
    bounded: Callable[..., Bound | None], defenses: tuple[str, ...], wire: str, said: str
) -> None:
    found = bounded(*defenses, wire=wire)
    assert found.mse is None
    assert found.estimate is None
    assert said in found.reason
    assert len(found.spectrum) == len(LEVELS)
    fast = bounded(*defenses, wire=wire, effort="quick")
    assert fast is None if not defenses else (fast.mse is None and said in fast.reason)


def test_what_autograd_cannot_go_through_has_a_reason(folder: Path, tmp_path: Path, seepage: Run) -> None:
    (tmp_path / "closed.py").write_text(CLOSED)
    victim = f"module/{tmp_path / 'closed.py'}:closed"
    code, _, err = seepage("audit", victim, folder, "--attack", "rmle:steps=2", "--layer", "0", "-o", tmp_path / "o")
    assert code == 0, err
    (cell,) = Store(tmp_path / "o").cells().values()
    assert "Jacobian cannot be had" in cell.bound.reason
    assert cell.bound.mse is None


CLOSED = """
import torch
from torch import nn


class Half(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 0.5

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, slope):
        return slope * 0.5


class Closed(nn.Module):
    def forward(self, x):
        return Half.apply(x)


def closed():
    torch.manual_seed(0)
    return nn.Sequential(Closed(), nn.Conv2d(3, 4, 3))


closed.image_shape = (3, 16, 16)
"""


def test_noise_after_clipping_is_bounded_by_what_clipping_lets_through(
    bounded: Callable[..., Bound | None], victim: str, folder: Path
) -> None:
    noise = "gaussian:sigma=0.1"
    bare, loose = bounded(noise), bounded("clip:limit=1000", noise)
    assert (loose.mse, loose.at_pictures) == (bare.mse, bare.at_pictures)
    assert loose.dfil.low <= bare.dfil.value <= loose.dfil.high
    tight = bounded("clip:limit=4", noise, effort="full")
    assert tight.reason == ""
    assert tight.mse > 1.5 * bare.mse
    # Behind a clipped norm lies (limit / norm) (1 - u u') J: its trace is known, the layer being linear.
    bench = Workbench(Request(victim, str(folder), layers=("mix",)))
    split = bench.split("mix")
    jacobian = torch.tensor(np.kron(MIX, np.eye(256)))
    known = []
    for entry in bench.source.entries[:3]:
        features = split.prefix(split.load(entry.path)[None]).double().flatten()
        unit = features / features.norm()
        slope = 4 / features.norm() * (jacobian - torch.outer(unit, unit @ jacobian))
        known.append(float(slope.square().sum()) / 768 / 0.1**2)
        assert features.norm() > 4
    assert tight.dfil.low <= sum(known) / 3 <= tight.dfil.high
    assert tight.dfil.value == pytest.approx(sum(known) / 3, rel=0.1)
    relative = bounded("clip:limit=0.5,relative=true", noise)
    assert relative.mse is None
    assert "fitted" in relative.reason
