"""Solvers: minimise a residual for each sample of a batch apart; a failure is a status with a sentence."""

from __future__ import annotations

from .adam import Adam
from .cg import Inverted, cg
from .lbfgs import LBFGS
from .levenberg_marquardt import LevenbergMarquardt
from .polish import Polish
from .solve import Bound, Method, Problem, State, Variable, drive

__all__ = [
    "LBFGS",
    "Adam",
    "Bound",
    "Inverted",
    "LevenbergMarquardt",
    "Method",
    "Polish",
    "Problem",
    "State",
    "Variable",
    "cg",
    "drive",
]
