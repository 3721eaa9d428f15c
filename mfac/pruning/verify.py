"""Whether a model is what a pruning report says it is."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from mfac.gradients.naming import named_parameters
from mfac.gradients.prunable import describe_weights
from mfac.masks.located import locate
from mfac.pruning.report import PruningReport


@torch.no_grad()
def verify(model: nn.Module, report: PruningReport) -> list[str]:
    """Proves each promise of a report on the model, or raises.

    Args:
        model: The pruned model, wrapped or not; also after fine-tuning that kept its zeros.
        report: Of `mfac.prune`.

    Returns:
        The proved promises, a line each. Of patterns only N:M is proved. A promise that the report
        does not make is not proved.

    Raises:
        ValueError: If a promise does not hold, naming it: a name or shape is not there, a weight is
            not finite, dropped weights are not zero, kept weights are zero, the sparsity is
            another, the pattern does not hold, or a tensor that was left dense has new zeros.

    Example:
        >>> import torch, mfac
        >>> model = torch.nn.Linear(4, 2)
        >>> report = mfac.prune(model, lambda model, batch: 0, [], sparsity=0.5, saliency="magnitude",
        ...                     compensation="none")
        >>> print(mfac.verify(model, report)[0])
        1 tensor has the name and the shape of its mask
        >>> torch.nn.init.ones_(model.weight) is model.weight
        True
        >>> mfac.verify(model, report)
        Traceback (most recent call last):
            ...
        ValueError: Weights that were dropped should be zero. Found 4 of 4 in 'weight' that are not.
    """
    located = locate(model, report.masks)
    pruned = {name: parameter for name, parameter in located.items() if name not in report.left_dense}
    named = "tensor has the name and the shape of its mask"
    proved = [f"1 {named}" if len(located) == 1 else f"{len(located)} tensors have the names and shapes of their masks"]
    _check_finite(model)
    proved.append("every weight is finite")
    zeros = _check_zeros(report, pruned)
    proved.append(f"{zeros} weights that were dropped are zero, and no others of these tensors")
    _check_sparsity(report, pruned, zeros)
    proved.append(f"the sparsity is {report.sparsity:.6f}")
    if report.pattern is not None:
        proved += _check_patterns(report.pattern, model, pruned)
    if report.dense_zeros is not None:
        _check_dense(model, report.dense_zeros)
        proved.append(f"{len(report.dense_zeros)} tensors that were left dense have no new zeros")
    return proved


def _check_finite(model: nn.Module) -> None:
    for name, parameter in named_parameters(model).items():
        if parameter.is_floating_point() and not bool(torch.isfinite(parameter).all()):
            count = int((~torch.isfinite(parameter)).sum())
            raise ValueError(
                f"Weights should be finite. Found {count} of {parameter.numel()} in {name!r} that are not."
            )


def _check_zeros(report: PruningReport, pruned: dict[str, nn.Parameter]) -> int:
    """Zeros are where masks say, and only there; returns how many."""
    zeros = 0
    for name, parameter in pruned.items():
        mask = report.masks[name].to(parameter.device)
        zero = parameter == 0
        wrong, dropped = int((~zero & ~mask).sum()), int((~mask).sum())
        if wrong:
            raise ValueError(
                f"Weights that were dropped should be zero. Found {wrong} of {dropped} in {name!r} that are not."
            )
        wrong = int((zero & mask).sum())
        if wrong:
            raise ValueError(
                f"Weights that were kept should not be zero. Found {wrong} of {mask.numel() - dropped} in {name!r} "
                f"that are."
            )
        zeros += dropped
    return zeros


def _check_sparsity(report: PruningReport, pruned: dict[str, nn.Parameter], zeros: int) -> None:
    total = sum(parameter.numel() for parameter in pruned.values())
    found = zeros / total if total else 0.0
    promised = [report.sparsity, *(step.sparsity for step in report.steps[-1:])]
    for sparsity in promised:
        if abs(sparsity - found) * total >= 0.5:  # of a weight: shares are rounded, counts are not
            raise ValueError(f"The sparsity should be {sparsity:.6f}, as reported. Found {found:.6f}.")


def _check_patterns(pattern: str, model: nn.Module, pruned: dict[str, nn.Parameter]) -> list[str]:
    """Says what was proved: of patterns N:M alone, as earlier zeros may break up other units."""
    by_name = pattern.startswith("{")  # one for each name, the first that matches
    parts = re.findall(r"'([^']*)': ([^,}]+)", pattern) if by_name else [("*", pattern)]
    left, proved = dict(pruned), []
    for names, part in parts:
        meant = {name: left.pop(name) for name in list(left) if fnmatchcase(name, names)}
        if found := re.fullmatch(r"([0-9]+):([0-9]+)", part):
            _check_n_of_m(int(found[1]), int(found[2]), model, meant)
            of = "" if names == "*" else f" of {names!r}"
            proved.append(f"at most {part.replace(':', ' of ')} successive weights{of} are kept along input channels")
    return proved


def _check_n_of_m(keep: int, group: int, model: nn.Module, pruned: dict[str, nn.Parameter]) -> None:
    for weight in describe_weights(model, pruned):
        if weight.layout is None:
            raise ValueError(
                f"The pattern should be {keep}:{group} along input channels. Found {weight.name!r}, which has none."
            )
        most = most_in_groups(pruned[weight.name].reshape(weight.layout) != 0, group)
        if most > keep:
            raise ValueError(
                f"The pattern should be {keep}:{group}: at most {keep} of {group} successive weights. Found {most} in "
                f"{weight.name!r}."
            )


def most_in_groups(kept: Tensor, group: int) -> int:
    """The most that are kept of any group of successive weights along the middle axis.

    Args:
        kept: [outer, inputs, inner] bool.
        group: M; the last group of an axis may have fewer.

    Returns:
        The count.
    """
    return max((int(piece.sum(1).max()) for piece in kept.split(group, dim=1) if piece.numel()), default=0)


def _check_dense(model: nn.Module, dense_zeros: dict[str, int]) -> None:
    named = named_parameters(model)
    for name, count in dense_zeros.items():
        if name not in named:
            raise ValueError(f"Tensors that were left dense should be there. Found no {name!r}.")
        found = int((named[name] == 0).sum())
        if found > count:
            raise ValueError(
                f"Tensors that were left dense should have no new zeros. Found {found} in {name!r}, which had {count}."
            )
