"""A damping chosen by its predictions of gradients left out of the fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mfac.core.checks.numbers import check_number

_SCALES = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


@dataclass(frozen=True)
class HeldOutDamping:
    """λ = c · mean of diag((1/n) GᵀG), with the c that does best on held-out gradients.

    Made by `mfac.held_out`.

    Attributes:
        scales: The candidates for c.
    """

    scales: tuple[float, ...]


def held_out(scales: Sequence[float] = _SCALES) -> HeldOutDamping:
    """Damping chosen by leave-one-out on the first stage's gradients.

    The joint update is a ridge regression with the ridge λ: the kept weights move to replace the
    dropped weights' part in each of the m gradients, G_D w_D. Each row is left out in turn and
    predicted from the others. Of the candidates within a standard error of the best, the largest is
    taken. The choice costs one eigendecomposition, O(m²) a candidate, and a diagonal of F⁻¹ that
    finds the weights to drop.

    Args:
        scales: Candidates for c, positive.

    Returns:
        A value for the parameter `damping` of `prune`; "auto" means `mfac.held_out()`.

    Raises:
        ValueError: If there is no candidate, or a candidate is not positive and finite.

    Example:
        >>> import torch, mfac
        >>> model = torch.nn.Linear(8, 4)
        >>> data = [(torch.randn(4, 8), torch.randn(4, 4)) for _ in range(16)]
        >>> loss_fn = lambda model, batch: torch.nn.functional.mse_loss(model(batch[0]), batch[1])
        >>> report = mfac.prune(model, loss_fn, data, 0.5, num_gradients=16, stages=1, damping=mfac.held_out())
        >>> report.steps[0].damping > 0
        True
    """
    if not scales:
        raise ValueError("Parameter `scales` should have at least one candidate. Found none.")
    return HeldOutDamping(tuple(sorted(check_number("scales", scale, above=0) for scale in scales)))


def left_out_errors(gram: Tensor, effect: Tensor, dampings: Sequence[float]) -> Tensor:
    """How much of the dropped weights' effect a joint update misses, on rows left out one by one.

    With C = nλI + K_S and α = C⁻¹(G_D w_D), row i is missed by α_i/(C⁻¹)_ii when it is predicted
    from the others.

    Args:
        gram: K_S = G_S G_Sᵀ of the kept columns, [m, m] float64.
        effect: G_D w_D, [m] float64.
        dampings: λ, several.

    Returns:
        Half the squared misses of each row for each λ, [len(dampings), m], in units of the loss.
        O(m³) once and O(m²) each.

    Source: leave-one-out of ridge regression in closed form: Allen's PRESS (1974).
    """
    values, vectors = torch.linalg.eigh(gram)
    turned = vectors.T @ effect
    errors = []
    for damping in dampings:
        inverse = 1 / (values.clamp(min=0) + gram.shape[0] * damping)
        misses = (vectors @ (inverse * turned)) / (vectors.square() @ inverse)
        errors.append(0.5 * misses.square())
    return torch.stack(errors)


def cautious_choice(errors: Tensor) -> int:
    """The last candidate that is worse than the best by at most one standard error.

    The standard error is that of the difference.

    The mean error is flat over a wide range of λ, and where it is least is largely chance. Of
    candidates that cannot be told apart, the largest λ moves the weights least.

    Args:
        errors: Of `left_out_errors`, with the candidates in rising order.

    Returns:
        Its number.

    Source: the rule of one standard error: Breiman et al., "Classification and Regression Trees"
    (1984), 3.4.3, here on the differences of rows, which the candidates share.
    """
    over = errors - errors[int(errors.mean(dim=1).argmin())]
    spread = over.std(dim=1, correction=0) / errors.shape[1] ** 0.5
    return int((over.mean(dim=1) <= spread).nonzero().max())
