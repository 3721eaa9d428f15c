"""Different patterns for different parameters, by their names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from mfac.core.checks.choices import did_you_mean
from mfac.gradients.naming import first_match
from mfac.gradients.prunable import PrunableWeight
from mfac.masks.kinds.base import Candidates, Pattern, Promise, Units


class ByName(Pattern):
    """A pattern for each parameter, by name or by the first shell-style pattern that matches.

    A part that fixes its own sparsity, as N:M does, ends exactly there. `sparsity` counts over all
    parameters: the other parts drop the weights that the fixed parts leave to drop. A sparsity that
    all parts together cannot reach is refused.

    Args:
        patterns: Name or shell-style pattern to pattern.

    Example:
        >>> import torch, mfac
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Tanh(), torch.nn.Linear(8, 4))
        >>> data = [(torch.randn(4, 8), torch.randn(4, 4)) for _ in range(16)]
        >>> loss_fn = lambda model, batch: torch.nn.functional.mse_loss(model(batch[0]), batch[1])
        >>> pattern = {"0.*": "2:4", "*": "unstructured"}
        >>> report = mfac.prune(model, loss_fn, data, sparsity=0.625, pattern=pattern, num_gradients=16, stages=1)
        >>> report.sparsity_by_parameter
        {'0.weight': 0.5, '2.weight': 0.875}
    """

    def __init__(self, patterns: Mapping[str, Pattern]) -> None:
        self.patterns = dict(patterns)

    def __repr__(self) -> str:
        return repr(self.patterns)

    def check(self, weights: Sequence[PrunableWeight]) -> None:
        """Refuses parameters without a pattern, patterns without a parameter, and unfit pairs.

        Args:
            weights: What is known of each.

        Raises:
            ValueError: If there is one, naming it.
        """
        used = set()
        for weight in weights:
            key = self._key(weight.name)
            if key is None:
                raise ValueError(
                    f"Parameter `pattern` should give every weight that is pruned a pattern. Found none for "
                    f"{weight.name!r}; '*' stands for all others."
                )
            used.add(key)
        if unused := [key for key in self.patterns if key not in used and key != "*"]:
            names = [weight.name for weight in weights]
            raise ValueError(
                f"Parameter `pattern` should name weights that are pruned. Found {unused[0]!r}, which is the "
                f"first to match none of {names}{did_you_mean(unused[0], names)}"
            )
        for pattern, indices in self._parts(weights):
            pattern.check([weights[i] for i in indices])

    def passes_over(self, name: str) -> str | None:
        """What the weight's own pattern says."""
        key = self._key(name)
        return None if key is None else self.patterns[key].passes_over(name)

    def least_kept(self, weights: Sequence[PrunableWeight], live: Tensor) -> list[int]:
        """What each part keeps at least."""
        return self._of_each(weights, live, lambda pattern, *rest: pattern.least_kept(*rest))

    def most_kept(self, weights: Sequence[PrunableWeight], live: Tensor) -> list[int]:
        """What each part keeps at most."""
        return self._of_each(weights, live, lambda pattern, *rest: pattern.most_kept(*rest))

    def together(self, weights: Sequence[PrunableWeight]) -> list[list[int]]:
        """The groups of each part."""
        groups = []
        for pattern, indices in self._parts(weights):
            groups += [[indices[i] for i in group] for group in pattern.together([weights[index] for index in indices])]
        return sorted(groups, key=min)

    def promises(self, weights: Sequence[PrunableWeight], kept: Tensor) -> list[Promise]:
        """What each part says, with the names that it is of."""
        pieces, found = kept.split([weight.size for weight in weights]), []
        for pattern, indices in self._parts(weights):
            key = self._key(weights[indices[0]].name)
            of_part = pattern.promises([weights[i] for i in indices], torch.cat([pieces[i] for i in indices]))
            found += [replace(promise, text=f"of {key!r} {promise.text}") for promise in of_part]
        return found

    def units(self, candidates: Candidates) -> Units:
        """The units of all parts, in the order of the parameters."""
        weights, live = candidates.weights, candidates.live
        alive = candidates.live_counts()
        owner = torch.repeat_interleave(torch.arange(len(weights)), torch.tensor(alive)).to(live.device)  # [n]
        unit_of = torch.full_like(owner, -1)
        found: list[tuple[int, Tensor, Tensor, Tensor]] = []  # first parameter, scores, sizes, number of each unit
        total = 0
        for pattern, indices in self._parts(weights):
            mine = torch.isin(owner, torch.tensor(indices, device=live.device))
            part = pattern.units(self._candidates(candidates, indices, mine))
            numbers = torch.arange(int(mine.sum()), device=live.device) if part.unit_of is None else part.unit_of
            unit_of[mine] = torch.where(numbers >= 0, numbers + total, -1)
            sizes = torch.ones_like(part.scores, dtype=torch.int64) if part.sizes is None else part.sizes
            groups = pattern.together([weights[i] for i in indices])
            number = torch.arange(total, total + part.scores.numel(), device=live.device)
            pieces = zip(groups, *(part.by_parameter(values) for values in (part.scores, sizes, number)), strict=True)
            found += [(min(indices[i] for i in group), *values) for group, *values in pieces]
            total += part.scores.numel()
        found.sort(key=lambda piece: piece[0])
        order = torch.cat([number for *_, number in found])
        place = torch.empty_like(order)
        place[order] = torch.arange(total, device=order.device)
        unit_of = torch.where(unit_of >= 0, place[unit_of.clamp(min=0)] if total else unit_of, -1)
        sizes = torch.cat([piece for _, _, piece, _ in found])
        counts = [scores.numel() for _, scores, _, _ in found]
        return Units(
            torch.cat([scores for _, scores, _, _ in found]),
            counts,
            unit_of,
            None if bool((sizes == 1).all()) else sizes,
        )

    def _candidates(self, candidates: Candidates, indices: list[int], mine: Tensor) -> Candidates:
        pieces = candidates.live.split([weight.size for weight in candidates.weights])
        live = torch.cat([pieces[i] for i in indices])
        return Candidates([candidates.weights[i] for i in indices], live, candidates.scores[mine])

    def _of_each(
        self,
        weights: Sequence[PrunableWeight],
        live: Tensor,
        count: Callable[[Pattern, Sequence[PrunableWeight], Tensor], list[int]],
    ) -> list[int]:
        pieces = live.split([weight.size for weight in weights])
        counts = [0] * len(weights)
        for pattern, indices in self._parts(weights):
            of_part = count(pattern, [weights[i] for i in indices], torch.cat([pieces[i] for i in indices]))
            for index, value in zip(indices, of_part, strict=True):
                counts[index] = value
        return counts

    def _parts(self, weights: Sequence[PrunableWeight]) -> list[tuple[Pattern, list[int]]]:
        """Each pattern that is used, and the parameters that it has, in order."""
        keys = [self._key(weight.name) for weight in weights]
        used = [key for key in self.patterns if key in keys]
        return [(self.patterns[key], [i for i, other in enumerate(keys) if other == key]) for key in used]

    def pattern_of(self, name: str) -> Pattern:
        """The pattern of a parameter; KeyError where it has none, which `check` refuses."""
        key = self._key(name)
        if key is None:
            raise KeyError(name)
        return self.patterns[key]

    def _key(self, name: str) -> str | None:
        return first_match(name, self.patterns)
