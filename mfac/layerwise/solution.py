"""What a layer-wise solver is given and what it returns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from mfac.layerwise.grid import Grid, GridValues
from mfac.layerwise.hessian import Hessian
from mfac.layerwise.matrix_pattern import MatrixPattern


@dataclass(frozen=True)
class LayerSolution:
    """Weights of a layer as a solver leaves them; docs/extending/layer_solver.md has an example.

    Attributes:
        weight: [rows, columns] float64; exactly 0 where `kept` is False.
        kept: Which entries are kept, [rows, columns] bool.
        grid: The steps that kept entries are on; None where they were not rounded.
    """

    weight: Tensor
    kept: Tensor
    grid: GridValues | None = None


LayerSolver = Callable[[Hessian, Tensor, MatrixPattern, Grid | None], LayerSolution]
"""A solver: Hessian, weight [rows, columns] float64, pattern, grid or None -> solution."""
