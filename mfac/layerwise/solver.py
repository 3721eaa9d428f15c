"""Solvers of one layer by name, and one call that solves a layer whose Hessian is given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from mfac.core.checks.choices import check_flag, did_you_mean, names_of
from mfac.core.checks.numbers import check_number
from mfac.curvature.damping import Damping
from mfac.layerwise.grid import Grid, GridValues
from mfac.layerwise.hessian import DAMPING, Hessian
from mfac.layerwise.matrix_pattern import MatrixPattern
from mfac.layerwise.solution import LayerSolution, LayerSolver
from mfac.layerwise.solvers.alps import alps
from mfac.layerwise.solvers.exact_obs import exact_obs
from mfac.layerwise.solvers.masks import magnitude, wanda
from mfac.layerwise.solvers.refit import refit as refit_weights
from mfac.layerwise.solvers.sweep import keep_zeros, sparsegpt, sweep
from mfac.masks.patterns import Pattern, resolve_pattern

SolverName = Literal["alps", "sparsegpt", "exact_obs", "wanda", "magnitude", "keep_zeros"]

SOLVERS: Mapping[str, LayerSolver] = {
    "alps": alps,
    "sparsegpt": sparsegpt,
    "exact_obs": exact_obs,
    "wanda": wanda,
    "magnitude": magnitude,
    "keep_zeros": keep_zeros,
}
"""By name; a solver of your own is given as a function (docs/extending/layer_solver.md)."""


def resolve_solver(method: SolverName | LayerSolver) -> LayerSolver:
    """The solver that a name stands for, or the function itself.

    Args:
        method: A name, or a function of Hessian, weight, pattern and grid.

    Returns:
        The solver.

    Raises:
        TypeError: If it is neither.
        ValueError: If the name is of none.
    """
    if isinstance(method, str):
        if method not in SOLVERS:
            raise ValueError(
                f"Parameter `method` should be {names_of(list(SOLVERS))}, or a function. Found {method!r}"
                f"{did_you_mean(method, SOLVERS)}"
            )
        return SOLVERS[method]
    if not callable(method):
        raise TypeError(f"Parameter `method` should be a name or a function. Found {type(method).__name__}.")
    return method


def solved(
    solver: LayerSolver, hessian: Hessian, weight: Tensor, pattern: MatrixPattern, refit: bool, grid: Grid | None
) -> LayerSolution:
    """Runs a solver, then fits the kept weights exactly where that is asked for.

    Args:
        solver: The solver.
        hessian: Of the inputs.
        weight: [rows, columns] float64.
        pattern: What is kept.
        refit: Whether kept weights are fitted exactly; with a grid they are swept onto it after.
        grid: Steps, or None.

    Returns:
        The solution, checked.

    Raises:
        ValueError: If a solver of the caller's own returns something that is no solution.
    """
    if pattern.kept == weight.numel() and grid is None:  # nothing to do, also for weights of inputs that are zero
        return LayerSolution(weight.clone(), torch.ones_like(weight, dtype=torch.bool))
    if refit and pattern.kept < weight.numel():
        found = _checked(solver, solver(hessian, weight, pattern, None), weight)
        fitted = LayerSolution(refit_weights(hessian, weight, found.kept), found.kept)
        return fitted if grid is None else sweep(hessian, fitted.weight, pattern, grid, found.kept)
    return _checked(solver, solver(hessian, weight, pattern, grid), weight)


def _checked(solver: LayerSolver, found: LayerSolution, weight: Tensor) -> LayerSolution:
    name = getattr(solver, "__name__", type(solver).__name__)
    if not isinstance(found, LayerSolution):
        raise TypeError(f"Solver {name} should return a LayerSolution. Found {type(found).__name__}.")
    if found.weight.shape != weight.shape or found.kept.shape != weight.shape or found.kept.dtype != torch.bool:
        raise ValueError(
            f"Solver {name} should return a weight and a bool mask of shape {list(weight.shape)}. Found "
            f"{list(found.weight.shape)} and {found.kept.dtype}, {list(found.kept.shape)}."
        )
    if not bool(torch.isfinite(found.weight).all()):
        raise ValueError(f"Solver {name} should return finite weights. Found some that are not.")
    return replace(found, weight=found.weight.masked_fill(~found.kept, 0))


@dataclass(frozen=True)
class SolvedLayer:
    """What `solve_layer` returns.

    Attributes:
        weight: [rows, columns], of the dtype given.
        mask: True where a weight is kept.
        error: tr(δHδᵀ)/tr(WHWᵀ) without damping, of the weights before they are rounded to the
            dtype.
        damping: λ that was taken.
        grid: Scales and zeros; None without `quantize`.
    """

    weight: Tensor
    mask: Tensor
    error: float
    damping: float
    grid: GridValues | None


def solve_layer(
    hessian: Tensor,
    weight: Tensor,
    sparsity: float = 0.5,
    pattern: str | Pattern = "unstructured",
    method: SolverName | LayerSolver = "alps",
    *,
    refit: bool = False,
    quantize: Grid | None = None,
    damping: Damping = DAMPING,
) -> SolvedLayer:
    """Prunes or rounds one matrix of weights so that its outputs stay the same.

    Args:
        hessian: XᵀX/n of the inputs X [n, columns], or XᵀX: the scale has no effect with a
            relative damping.
        weight: W [rows, columns], Y = X Wᵀ.
        sparsity: Share of zeros in [0, 1); a pattern of N:M has its own.
        pattern: As for `prune_layerwise`.
        method: As for `prune_layerwise`.
        refit: Whether kept weights are fitted exactly on the mask found.
        quantize: Steps that kept weights are rounded to.
        damping: λ, or relative to the mean of the diagonal.

    Returns:
        Weight, mask and error.

    Raises:
        ValueError: If shapes do not fit, or a number is out of range.
        NotPositiveDefiniteError: If the Hessian has no factor at any damping allowed.

    Example:
        >>> import torch, mfac
        >>> weight = torch.tensor([[3.0, 1.0, 0.5, 2.0]])
        >>> mfac.solve_layer(torch.eye(4), weight, sparsity=0.5, method="exact_obs").weight
        tensor([[3., 0., 0., 2.]])
    """
    if weight.dim() != 2 or not weight.is_floating_point():
        raise ValueError(
            f"Parameter `weight` should be a floating-point matrix. Found {weight.dtype}, {list(weight.shape)}."
        )
    inputs = Hessian(hessian, damping)
    if weight.shape[1] != inputs.columns:
        raise ValueError(
            f"Parameter `hessian` should be {weight.shape[1]} x {weight.shape[1]} for a weight of shape "
            f"{list(weight.shape)}. Found {list(hessian.shape)}."
        )
    check_flag("refit", refit)
    check_number("sparsity", sparsity, least=0, below=1)
    wanted = MatrixPattern.of(resolve_pattern(pattern), weight.shape[0], weight.shape[1], 1, sparsity)
    found = solved(resolve_solver(method), inputs, weight.double(), wanted, refit, quantize)
    error = inputs.relative_error(weight, found.weight)
    return SolvedLayer(found.weight.to(weight.dtype), found.kept, error, inputs.damping, found.grid)
