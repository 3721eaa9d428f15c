"""Whether a model is what a pruning report says it is."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mfac.gradients.naming import named_parameters
from mfac.gradients.prunable import Layout, describe_weights
from mfac.masks.located import locate
from mfac.masks.patterns import Pattern, pattern_of_text, resolve_pattern
from mfac.pruning.report import PruningReport

_Located = dict[str, nn.Parameter]


@torch.no_grad()
def verify(
    model: nn.Module, report: PruningReport, pattern: str | Pattern | Mapping[str, str | Pattern] | None = None
) -> list[str]:
    """Proves each promise of a report on the model, or raises.

    Args:
        model: The pruned model, wrapped or not; also after fine-tuning that kept its zeros.
        report: Of `mfac.prune`.
        pattern: As of `prune`; needed where the report holds only its name: for heads of attentions
            that were given, and for a pattern of one's own.

    Returns:
        The proved promises, a line each. A promise that the report does not make is not proved.

    Raises:
        ValueError: If a promise does not hold, naming it: a name or shape is not there, a weight is
            not finite, dropped weights are not zero, more kept weights are zero than when pruning
            ended, the sparsity is another, a unit of the pattern is neither kept nor dropped whole,
            or a tensor that was left dense has new zeros.

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
    zeros, kept_zeros = _check_zeros(report, pruned)
    others = f"{kept_zeros} others, as when pruning ended" if kept_zeros else "no others"
    proved.append(f"{zeros} weights that were dropped are zero, and {others} of these tensors")
    _check_sparsity(report, pruned, zeros)
    proved.append(f"the sparsity is {report.sparsity:.6f}")
    if pattern is not None:
        known: Pattern | None = resolve_pattern(pattern)
    else:
        known = None if report.pattern is None else pattern_of_text(report.pattern, model)
    if known is not None and pruned:
        proved += _check_pattern(known, report.broken_units, model, report.masks, pruned, report.layouts)
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


def _check_zeros(report: PruningReport, pruned: dict[str, nn.Parameter]) -> tuple[int, int]:
    """Zeros are where masks say, and only there; returns how many, and how many kept zeros."""
    zeros = kept_zeros = 0
    for name, parameter in pruned.items():
        mask = report.masks[name].to(parameter.device)
        zero = parameter == 0
        wrong, dropped = int((~zero & ~mask).sum()), int((~mask).sum())
        if wrong:
            raise ValueError(
                f"Weights that were dropped should be zero. Found {wrong} of {dropped} in {name!r} that are not."
            )
        wrong = int((zero & mask).sum())
        before = report.kept_zeros.get(name, 0)
        if wrong > before:
            were = f", where {before} were when pruning ended" if before else ""
            raise ValueError(
                f"Weights that were kept should not be zero. Found {wrong} of {mask.numel() - dropped} in {name!r} "
                f"that are{were}."
            )
        zeros += dropped
        kept_zeros += wrong
    return zeros, kept_zeros


def _check_sparsity(report: PruningReport, pruned: dict[str, nn.Parameter], zeros: int) -> None:
    total = sum(parameter.numel() for parameter in pruned.values())
    found = zeros / total if total else 0.0
    promised = [report.sparsity, *(step.sparsity for step in report.steps[-1:])]
    for sparsity in promised:
        if abs(sparsity - found) * total >= 0.5:  # of a weight: shares are rounded, counts are not
            raise ValueError(f"The sparsity should be {sparsity:.6f}, as reported. Found {found:.6f}.")


def _check_pattern(
    pattern: Pattern,
    allowed: Mapping[str, int],
    model: nn.Module,
    masks: Mapping[str, Tensor],
    pruned: _Located,
    layouts: Mapping[str, Layout],
) -> list[str]:
    """Says what was proved; units that earlier zeros had broken up may be as they were."""
    weights = describe_weights(model, pruned, layouts)
    pattern.check(weights)
    kept = torch.cat([masks[weight.name].reshape(-1).cpu() for weight in weights])
    proved = []
    for promise in pattern.promises(weights, kept):
        as_before = 0
        for one in promise.broken:
            before = allowed.get(one.name, 0)
            if one.count > before:
                more = f", and {one.count - 1} more" if one.count > 1 else ""
                were = f"; {before} were so when pruning ended" if before else ""
                raise ValueError(
                    f"The pattern should be {promise.pattern}: {promise.text}. Found {one.first} in {one.name!r}{more}"
                    f"{were}."
                )
            as_before += one.count
        but = f", but for {as_before} units that were not so when pruning ended" if as_before else ""
        proved.append(f"{promise.pattern}: {promise.text}{but}")
    return proved


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
