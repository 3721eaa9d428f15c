"""What each weight tensor costs at several sparsities: the tables that a budget is made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import nn

from mfac.core.checks.choices import check_choice
from mfac.core.checks.numbers import check_number
from mfac.gradients.examples import call_with
from mfac.gradients.modes import model_mode
from mfac.gradients.parameters import Selection, check_tensors
from mfac.pruning.flops import counted_flops
from mfac.pruning.targets import choose_targets

LEVELS = (0.0, 0.3, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.93, 0.95, 0.97, 0.98)


def cost_table(
    model: nn.Module,
    unit: Literal["flops", "bytes"],
    example: Any = None,
    levels: Sequence[float] = LEVELS,
    params: Selection = None,
) -> dict[str, dict[float, float]]:
    """Costs of every weight tensor at several sparsities, for `mfac.Budget` and `mfac.allocate`.

    Args:
        model: The model; nothing of it changes.
        unit: "flops", a product and a sum for each use of a kept weight in one forward pass, as
            `PruningReport.measure` counts them; "bytes", of a compact file: a bit for each weight,
            and the values of the kept ones.
        example: An input for the forward pass: a tensor, a tuple of arguments or a mapping of named
            arguments. For "flops".
        levels: Sparsities in [0, 1).
        params: Which weights, as for `mfac.prune`; the budget's run has to prune the same.

    Returns:
        {parameter: {sparsity: cost}}.

    Raises:
        ValueError: If a level is not in [0, 1), the unit is another, there is no example for
            "flops", or the forward pass calls no layer with one of the weights.

    Example:
        >>> import torch, mfac
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
        >>> costs = mfac.cost_table(model, "flops", torch.zeros(1, 8), levels=(0.0, 0.5))
        >>> costs
        {'0.weight': {0.0: 256.0, 0.5: 128.0}, '2.weight': {0.0: 64.0, 0.5: 32.0}}
        >>> mfac.Budget(costs, 0.6 * (256 + 64)).budget
        192.0
    """
    check_choice("unit", unit, ("flops", "bytes"))
    for level in levels:
        check_number("levels", level, least=0, below=1)
    check_tensors(model)
    vector = choose_targets(model, params, "auto").vector
    sizes = dict(zip(vector.names, vector.sizes, strict=True))
    if unit == "bytes":
        widths = {name: parameter.element_size() for name, parameter in vector.parameters.items()}
        return {
            name: {s: float((size - round(s * size)) * widths[name] + (-(-size // 8) if s else 0)) for s in levels}
            for name, size in sizes.items()
        }
    if example is None:
        raise ValueError('Parameter `example` should be an input of the model for unit="flops". Found None.')
    with model_mode(model, "eval"), counted_flops(model) as counts, torch.no_grad():
        call_with(model, example)
    uncounted = [name for name in sizes if name not in counts]
    if uncounted:
        raise ValueError(
            f"Parameter `example` should lead through every layer that is pruned. Found no call of the layers of "
            f"{uncounted}."
        )
    return {name: {s: (1 - s) * counts[name] for s in levels} for name in sizes}
