"""Solvers: minimise a residual for each sample of a batch apart; a failure is a status with a sentence."""

from __future__ import annotations

from .adam import Adam
from .cg import Inverted, cg
from .contract import Solution, Solver
from .dense import DenseMarquardt
from .gmres import gmres
from .lbfgs import LBFGS
from .levenberg_marquardt import LevenbergMarquardt
from .newton_krylov import NewtonKrylov
from .polish import Polish
from .solve import Bound, Method, Problem, State, Variable, drive

__all__ = [
    "LBFGS",
    "Adam",
    "Bound",
    "DenseMarquardt",
    "Inverted",
    "LevenbergMarquardt",
    "Method",
    "NewtonKrylov",
    "Polish",
    "Problem",
    "Solution",
    "Solver",
    "State",
    "Variable",
    "cg",
    "drive",
    "gmres",
]
