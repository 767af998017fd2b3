"""PyGRANSO (Liang, Mitchell & Sun 2021) on one block's problem in x, p and n, where it is installed.

Version 1.2.0 is of 2022: it imports names that NumPy has since dropped, a commercial solver that it then does not use,
and a window toolkit for a constant. All three are stood in for while it is imported. It is licensed under the AGPL and
takes part in benchmarks alone.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import sys
import warnings
from types import ModuleType
from unittest import mock

import torch
from torch import Tensor, nn


def missing() -> str | None:
    """Return why it cannot be used here, None where it can."""
    absent = [name for name in ("pygranso", "osqp") if importlib.util.find_spec(name) is None]
    return f"not installed: {', '.join(absent)}; pip install --group bench" if absent else None


def solve(
    first: nn.Module, second: nn.Module, y: Tensor, iterations: int, seconds: float, feasible: float = 1e-6
) -> tuple[Tensor, str]:
    """Return x of least |y - x - W2 p|^2 with W1 x = p - n, p >= 0, n >= 0, <p, n> = 0, and how it ended.

    `y`, float64, is one block's output "1 c h w"; the search starts at x = y with p and n that meet the constraints. It
    ends after `iterations`, after `seconds`, or at its own test of being stationary; constraints may be missed by
    `feasible`. Equalities and signs go in as the norm of what is missed: it differentiates every constraint by itself,
    and 960 of them take half a minute a step.
    """
    importlib.import_module("scipy.sparse")
    with mock.patch.dict(sys.modules, _stand_ins()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pygranso = importlib.import_module("pygranso.pygranso").pygranso
        struct = importlib.import_module("pygranso.pygransoStruct").pygransoStruct
        a = first(y).detach()
        shape, inner = list(y.shape), list(a.shape)

        def problem(variables: object) -> list[object]:
            x, p, n = variables.x, variables.p, variables.n  # type: ignore[attr-defined]
            below, equal = struct(), struct()
            below.c1 = torch.cat([-p, -n]).clamp_min(0).norm()
            equal.c1, equal.c2 = (first(x) - p + n).norm(), (p * n).sum()
            return [(y - x - second(p)).square().sum(), below, equal]

        options = struct()
        options.torch_device = torch.device("cpu")
        options.x0 = torch.cat([y.flatten(), a.clamp_min(0).flatten(), (-a).clamp_min(0).flatten()])[:, None]
        options.maxit, options.maxclocktime, options.print_level = iterations, seconds, 0
        options.opt_tol, options.viol_eq_tol, options.viol_ineq_tol = 1e-8, feasible, feasible
        options.quadprog_info_msg = False
        solution = pygranso(var_spec={"x": shape, "p": inner, "n": inner}, combined_fn=problem, user_opts=options)
    found = solution.final.x[: y.numel()].view_as(y)
    return found.detach(), f"code {solution.termination_code} after {solution.iters} iterations"


def _stand_ins() -> dict[str, ModuleType]:
    numeric, text = ModuleType("numpy.core.numeric"), ModuleType("numpy.core.defchararray")
    numeric.Inf, text.isspace = math.inf, str.isspace  # type: ignore[attr-defined]
    gurobi, window = ModuleType("gurobipy"), ModuleType("tkinter.messagebox")
    gurobi.GRB, window.NO = object(), "no"  # type: ignore[attr-defined]
    toolkit = ModuleType("tkinter")
    return {module.__name__: module for module in (numeric, text, gurobi, window, toolkit)}
