"""The leave-one-out rule: each gradient is preconditioned by the others and not by itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from mfac.curvature.damping import row_relative
from mfac.optim.rules.base import Rule, gradient_weights
from mfac.window.combination import Combination
from mfac.window.sliding import SlidingFisher


class LeaveOneOut(Rule):
    """u = Σ aₖ λF₋ₖ⁻¹gₖ, where F₋ₖ is the Fisher without gradient k, and aₖ the momentum's weights.

    With A = (nλI + K)⁻¹ the coefficients are c = A(a ⊘ diag A). For one gradient that is the
    paper's direction divided by its own gain. So ‖u‖ ≤ ‖g‖ and gᵀu = 1/A_jj - nλ ≥ 0; with
    `mfac.row_relative(ρ)` u scales with the loss as g does; and u tends to the gradient that SGD
    takes as ρ grows, so that SGD's learning rate is an upper bound for this rule's.

    Derived in docs/derivation.md, "Rules of a step".
    """

    defaults: ClassVar[Mapping[str, Any]] = {
        "lr": 0.03,
        "rank": 64,
        "damping": row_relative(1.0),
        "momentum": 0.9,
        "grafting": 0.0,
        "orthogonal": False,
    }

    def combination(self, fisher: SlidingFisher, options: Mapping[str, Any]) -> Combination | None:
        newest = fisher.ring.newest
        assert newest is not None  # a step has just pushed it
        a = gradient_weights(fisher.ring, options["momentum"], options["nesterov"], averaged=self.metric)
        a = a.to(fisher.rows.device)
        if not fisher.capacitance.trace > 0:
            return Combination(torch.zeros_like(a), torch.zeros_like(a), 1.0, a, newest)
        shift = fisher.shift
        diagonal = fisher.capacitance.inverse_diagonal(shift)
        b = a / diagonal
        if options["centred"]:
            c, images = centred_solve(fisher, b, shift, a / a.sum())
        else:
            c = fisher.capacitance.solve(b.unsqueeze(0), shift)[0]
            images = b - shift * c
        return Combination(c, images, 1.0, a, newest)


class Adam(LeaveOneOut):
    """The leave-one-out rule in Adam's metric: u = D^(-1/2) Hᵀc over a window of h = D^(-1/2) g.

    D = √v̂ + ε with Adam's average v̂ of squared gradients. Momentum weights are averaged as
    Adam's, so that this rule tends to AdamW's step as ρ grows, up to the drift of D within a
    window. By default an update has the length of Adam's (`grafting=1`): AdamW's rates hold.
    """

    defaults: ClassVar[Mapping[str, Any]] = {
        "lr": 3e-3,
        "rank": 64,
        "damping": row_relative(1.0),
        "momentum": 0.9,
        "grafting": 1.0,
        "orthogonal": False,
    }
    metric = True


class Spectral(Adam):
    """The rule "adam", and the orthogonal factor of each matrix's update, with the update's norm.

    Vectors move as under "adam", so that learning rates are AdamW's or a little larger.
    """

    defaults: ClassVar[Mapping[str, Any]] = {
        **Adam.defaults,
        "lr": 0.01,
        "damping": row_relative(3.0),
        "orthogonal": True,
    }


def centred_solve(fisher: SlidingFisher, b: Tensor, shift: float, w: Tensor) -> tuple[Tensor, Tensor]:
    """(nλI + QᵀQK)⁻¹b and K times it, for the covariance of gradients about their mean.

    Q = I - 1wᵀ takes the mean with weights w from each filled row.
    QᵀQK = K - w(1ᵀK) - 1(wᵀK) + f·w(wᵀK) over f filled rows, a change of rank two.

    Args:
        fisher: The window.
        b: [m] float64, zero for empty rows.
        shift: nλ.
        w: [m] float64, of sum 1.

    Returns:
        c and Kc, [m] float64. O(m²): three products with (nλI + K)⁻¹.
    """
    ones = torch.tensor(fisher.ring.filled, dtype=torch.float64, device=b.device)
    # (C + UVK)⁻¹ with U = [-w, f·w - 1] and V = [1ᵀ; wᵀ]; KA = I - nλA gives VKA for nothing.
    left = torch.stack([-w, ones.sum() * w - ones])  # Uᵀ
    right = torch.stack([ones, w])  # V
    solved = fisher.capacitance.solve(torch.cat([b.unsqueeze(0), left]), shift)  # [3, m]
    of_gram = torch.cat([b.unsqueeze(0), left]) - shift * solved  # K A of each
    small = torch.eye(2, dtype=torch.float64, device=b.device) + right @ of_gram[1:].T
    y = torch.linalg.solve(small, right @ of_gram[0])
    return solved[0] - y @ solved[1:], of_gram[0] - y @ of_gram[1:]
