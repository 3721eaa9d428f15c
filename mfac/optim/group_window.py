"""The window of one parameter group, and a step on it: take the gradient, then move."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from mfac.core.devices import check_device, check_same_device
from mfac.curvature.damping import check_damping
from mfac.distributed.pieces import Whole
from mfac.distributed.rows import SummedRows
from mfac.optim.columns import Columns
from mfac.optim.control import controlled
from mfac.optim.metric import AdamMetric
from mfac.optim.options import OPTIONS, number_of, rule_of
from mfac.optim.orthogonal import is_matrix, orthogonalized, orthogonalized_alike
from mfac.optim.rules.base import gradient_weights
from mfac.window.combination import Combination
from mfac.window.descent import Descent
from mfac.window.formats.base import Rows, in_range
from mfac.window.formats.named import named_format
from mfac.window.rounding import NARROW, compensation_for
from mfac.window.window import GradientWindow


class GroupWindow:
    """What a group keeps from step to step: its window, its momentum, its metric.

    Memory is the window, and per weight: 4 bytes for the gradient, 4 for the momentum of updates,
    12 for Adam's metric, 2 for a compensated sum.

    Args:
        options: The group. Read in each step, so that schedulers may change it.
        parameters: Those of its parameters that train.
        pieces: Which piece of each is this process's.
        kept: For each, the entries that a mask keeps, or None for all.

    Attributes:
        options: As given.
        columns: Which columns of the window belong to which parameter.
        window: The gradients.
        average: The momentum of updates, [d]; None where there is none.
        metric: Adam's metric, if the rule has one.
        compensations: What rounding has left out of each narrow parameter, in a compensated sum.
        last: The direction of the last step.
        present: Whether each parameter had a gradient in each row, [parameters, m].
        is_allocated: Whether there has been a step.
        checked: The options as they were when last checked.
    """

    def __init__(
        self,
        options: dict[str, Any],
        parameters: Sequence[Tensor],
        pieces: Whole,
        kept: Sequence[Tensor | None] = (),
    ) -> None:
        self.options = options
        self.checked = {name: options[name] for name in OPTIONS}
        self.rule = rule_of(options)
        self.columns = Columns(parameters, pieces, kept)
        self.window = self._make_window()
        self.average: Tensor | None = None
        self.metric: AdamMetric | None = None
        self.compensations: list[Tensor | None] = [None] * len(self.columns)
        self.last: Combination | None = None
        self.is_allocated = False
        self.present = torch.ones((len(self.columns), options["rank"]), dtype=torch.bool, device="cpu")
        self._has: list[bool] = []

    def _make_window(self) -> GradientWindow:
        parameters, pieces, options = self.columns.parameters, self.columns.pieces, self.options
        device = parameters[0].device
        for parameter in parameters:
            check_device("params", parameter.device)
            check_same_device("params", parameter.device, device)
        made = options["window_format"] or named_format(options["window_dtype"], options["density"])
        arguments = {"damping": options["damping"], "device": device, "normalize": options["normalize"]}
        form: Callable[[int, int, torch.device], Rows] = made
        if type(pieces) is not Whole:
            total = self.columns.total_dim
            form = lambda rank, dim, place: SummedRows(made(rank, dim, place), pieces, total)  # ruff: ignore[lambda-assignment]
        # A process may hold no weight of any parameter: then its window has one column of zeros.
        return GradientWindow(options["rank"], max(1, self.columns.dim), format=form, **arguments)

    @cached_property
    def _flat(self) -> Tensor:
        """[d], of the gradient: memory that a step would otherwise ask the system for anew."""
        return torch.zeros(self.window.dim, dtype=self.window.vector_dtype, device=self.window.device)

    def follow(self, parameters: Sequence[Tensor], kept: Sequence[Tensor | None]) -> GroupWindow:
        """The window of other parameters of the group, with what this one knows of those in both.

        Each row is pushed anew: O(dm²), when parameters are frozen, unfrozen or reshaped.

        Args:
            parameters: Those that train now.
            kept: For each, the entries that a mask keeps, or None for all.

        Returns:
            Another window.
        """
        other = GroupWindow(self.options, parameters, self.columns.pieces, kept)
        if not self.is_allocated:
            return other
        other.start(momentum=self.average is not None)
        shared = list(self.columns.shared(other.columns))
        other.window.take_over(self.window, [(old, new) for _, _, old, new in shared])
        other.present[:] = ~torch.tensor(other.window.ring.filled, device="cpu")
        for i, j, old, new in shared:
            if self.average is not None and other.average is not None:
                other.average[new] = self.average[old]
            if self.metric is not None and other.metric is not None:
                other.metric.square_average[new] = self.metric.square_average[old]
                other.metric.counts[j] = self.metric.counts[i]
            other.present[j] = self.present[i]
            if (known := self.compensations[i]) is not None:
                moved = known.new_zeros(math.prod(other.columns.local_shapes[j]))
                moved[new - other.columns.starts[j]] = known.reshape(-1)[old - self.columns.starts[i]]
                other.compensations[j] = moved.view(other.columns.local_shapes[j])
        return other

    def start(self, momentum: bool | None = None, compensated: bool | None = None) -> None:
        """Allocates what a step writes.

        Args:
            momentum: Whether there is a momentum of updates; None for what the options say.
            compensated: Whether there are compensations, likewise.
        """
        self.is_allocated = True
        if momentum is None:
            momentum = number_of("momentum", self.options["momentum"]) > 0
        if compensated is None:
            compensated = self.options["rounding"] == "compensated"
        if not (self.rule.averages_updates and momentum):
            self.average = None  # what it was is not taken up again later
        elif self.average is None:
            self.average = torch.zeros_like(self._flat)
        self._start_metric()
        wanted = [compensated and parameter.dtype in NARROW for parameter in self.columns.parameters]
        known = zip(self.compensations, wanted, strict=True)
        self.compensations = [compensation if keep else None for compensation, keep in known]
        if wanted != [compensation is not None for compensation in self.compensations]:
            for i, piece in enumerate(self.columns.weights()):  # under masks a copy, not to be made in each step
                if wanted[i] and self.compensations[i] is None:
                    self.compensations[i] = compensation_for(piece)

    def _start_metric(self) -> None:
        if self.rule.metric and self.metric is None:
            place = self.window.vector_dtype, self.window.device
            self.metric = AdamMetric(self.columns.slices, self.window.dim, *place)

    @property
    def momentum(self) -> Tensor | None:
        """The momentum of updates, [d], or the weights of the window's gradients; None without."""
        momentum = number_of("momentum", self.options["momentum"])
        if momentum == 0 or self.window.ring.pushes == 0:
            return None
        if self.rule.averages_updates:
            return self.average
        return gradient_weights(self.window.ring, momentum, self.options["nesterov"], self.rule.metric)

    def is_in(self, state: Mapping[Any, Any]) -> bool:
        """Whether an optimizer's state has it still, if ever: one that was emptied begins anew."""
        return not self.is_allocated or self.columns.parameters[0] in state

    def gather(self) -> bool:
        """Reads the gradients; whether any parameter has one."""
        options = self.options
        decay = 0.0 if options["decoupled_weight_decay"] else number_of("weight_decay", options["weight_decay"])
        self._has = self.columns.gather_(self._flat, decay, options["maximize"])
        return any(self._has)

    @property
    def is_probe(self) -> bool:
        """Whether this is no step: nothing was pushed yet, the rate is 0 and so are all gradients.

        Checkpointing tools take such a step to see which state there will be.
        """
        if self.window.ring.pushes or self.lr:
            return False
        gradients = self.columns.local([parameter.grad for parameter in self.columns.parameters])
        found = [gradient is not None and bool(gradient.any()) for gradient in gradients]
        return not self.columns.pieces.any(any(found))  # of another process a shard may be zero

    @property
    def lr(self) -> float:
        """η as it stands now."""
        return float(number_of("lr", self.options["lr"]))

    def see(self) -> None:
        """Takes the gradient that was read into the metric's coordinates; no state has changed."""
        self._start_metric()
        if self.metric is not None:
            self.metric.see_(self._flat, *self._of_metric, self._has)

    @property
    def _of_metric(self) -> tuple[float, float]:
        """β₂ and ε."""
        return tuple(float(number_of(name, self.options[name])) for name in ("beta2", "eps"))  # type: ignore[return-value]

    def holds_gradient(self) -> bool:
        """Whether the gradient that was seen is finite and in the window's range."""
        return self.window.format.holds(self._flat)

    def why_refused(self, place: str) -> str:
        """What is wrong with the gradient that was seen, in which group and of which parameter."""
        return f"{self.window.format.why_refused(self._flat)}{place}.{self.where()}"

    def take(self) -> None:
        """Takes the gradient that was seen into the window.

        Raises:
            ValueError: If it holds a NaN or infinity, or what the window cannot hold; nothing has
                changed.
        """
        try:
            self.window.push(self._flat)
        except ValueError as error:
            raise ValueError(f"{error}{self.where()}") from error
        self.start()
        if self.metric is not None:
            self.metric.take()
        self.present[:, self.window.newest] = torch.tensor(self._has, device="cpu")

    def aim(self) -> None:
        """Finds the direction of this step, O(m²); no weight moves.

        Raises:
            ValueError: If a relative damping comes out beyond float64's range.
            torch.linalg.LinAlgError: If λ is too small for float64.
        """
        options, algebra = self.options, self.window.algebra
        algebra.given_damping = check_damping(options["damping"])
        found = self.rule.combination(algebra, options)
        if found is None:
            self.window.precondition()  # of few columns: what it raises is not to come between moves of groups
        self.last = None if found is None else controlled(found, algebra, options, self.lr, self.columns.total_dim)

    def where(self) -> str:
        """Which parameters hold a gradient out of the window's range, for an error's message."""
        names = self.options.get("param_names")
        everything = self.options["params"]
        found = []
        for parameter, gradient in zip(self.columns.parameters, self.columns.views(self._flat), strict=True):
            if not in_range(gradient, self.window.dtype):
                number = next(i for i, p in enumerate(everything) if p is parameter)
                found.append(repr(names[number]) if names else f"number {number}, shape {list(parameter.shape)}")
        return f" It is in the gradient of parameter {'; '.join(found)}." if found else ""

    def move(self, seed: int) -> None:
        """Moves the weights along the direction that `aim` has found.

        Args:
            seed: Of stochastic rounding, with the number of the step.
        """
        options, columns = self.options, self.columns
        decay = 1.0
        if options["decoupled_weight_decay"]:
            decay = 1 - self.lr * number_of("weight_decay", options["weight_decay"])
        locals_ = columns.weights()
        descent = Descent(
            average=self.average,
            momentum=0.0 if self.average is None else number_of("momentum", options["momentum"]),
            nesterov=self.average is not None and options["nesterov"],
            metric=None if self.metric is None else self.metric.scale,
            finish=self._orthogonalize if options["orthogonal"] else None,
            generator=self._generator(seed, locals_),
        )
        of_each = zip(locals_, columns.starts, self._has, self._rates(), self.compensations, strict=True)
        for piece, start, has, rate, compensation in of_each:
            if has and piece.numel():
                descent.add(piece, start, rate, decay, compensation)
        if descent.parameters:
            c = None if self.last is None else self.last.coefficients
            self.window.descend_(descent, c, 1.0 if self.last is None else self.last.factor)
        elif descent.finish is not None:
            descent.finish([])
        columns.put_back_(locals_)
        columns.pieces.exchange_([p for p, has in zip(columns.parameters, self._has, strict=True) if has])

    def _rates(self) -> list[float]:
        """η for each parameter: an average is over the steps in which it had a gradient."""
        rates = [self.lr] * len(self.columns)
        if self.rule.metric and self.last is not None and not bool(self.present.all()):
            weights = self.last.target.cpu()
            missing = (~self.present & (weights != 0)).any(1)
            sums = self.present.double() @ weights
            for i in missing.nonzero()[:, 0].tolist():
                if self._has[i]:
                    rates[i] = self.lr / float(sums[i])
        return rates

    def _orthogonalize(self, moves: list[Tensor]) -> list[Tensor]:
        """The updates of all parameters that move, those of matrices orthogonalised whole."""
        columns, left = self.columns, iter(moves)
        results: dict[int, Tensor] = {}
        for i, has in enumerate(self._has):
            if has:
                empty = 0 in columns.local_shapes[i]  # which does not move, but other processes have more of it
                results[i] = self._flat.new_zeros(columns.local_shapes[i]) if empty else next(left)
        matrices = [i for i in results if is_matrix(columns.shapes[i])]
        whole = [i for i in matrices if columns.kept[i] is None]
        found = columns.pieces.of_whole(
            [columns.parameters[i] for i in whole], [results[i] for i in whole], orthogonalized_alike
        )
        results.update(zip(whole, found, strict=True))
        for i in matrices:
            if (index := columns.kept[i]) is not None:
                flat = results[i].new_zeros(columns.parameters[i].numel()).index_copy_(0, index, results[i])
                results[i] = orthogonalized(flat.view(columns.shapes[i])).reshape(-1)[index]
        return [move for i, move in results.items() if 0 not in columns.local_shapes[i]]

    def _generator(self, seed: int, pieces: Sequence[Tensor]) -> torch.Generator | None:
        """Of this step: a function of its number, so that a resumed run rounds as the first."""
        if self.options["rounding"] != "stochastic" or not any(p.dtype in NARROW for p in pieces):
            return None
        seed += 1_000_003 * self.window.ring.pushes
        seed = 65_536 * seed + self.columns.pieces.number  # of its own for every process with columns of its own
        return torch.Generator(self.window.device).manual_seed(seed)

    def known_index(self, parameter: Tensor, index: Tensor) -> Tensor:
        """The window's own list of a parameter's entries where it says the same, or `index`."""
        for mine, known in zip(self.columns.parameters, self.columns.kept, strict=True):
            if mine is parameter and known is not None and torch.equal(known, index):
                return known
        return index

    def gradients(self) -> list[Tensor]:
        """The gradients held of each parameter's piece, in the weights' metric.

        The metric is that of now: earlier gradients are as they were up to its change since.

        Returns:
            [rows held, size] of each; entries that a mask drops are zero.
        """
        filled = torch.tensor(self.window.ring.filled, device=self.window.device).nonzero()[:, 0]
        rows = self.window.format.as_dense(filled)
        found = []
        for i, columns in enumerate(self.columns.slices):
            piece = rows[:, columns]
            if self.metric is not None:
                piece = piece / self.metric.scale_of(i, *self._of_metric)
            if (index := self.columns.kept[i]) is not None:
                size = self.columns.parameters[i].numel()
                piece = piece.new_zeros((len(piece), size)).index_copy_(1, index, piece)
            found.append(piece)
        return found

    def settle(self, waits: bool) -> None:
        """If `waits`, waits for what a GPU has to say of the last step: that it was refused."""
        if waits:
            self.window.state_dict(copy=False)

    def diagnostics(self) -> dict[str, float]:
        """What the last step was, O(m²); see `MFAC.diagnostics`."""
        algebra, u = self.window.algebra, self.last
        gram = self.window.capacitance.gram
        trace = self.window.capacitance.trace
        squares = 2 * float(gram.tril(-1).square().sum()) + float(gram.diagonal().square().sum())
        found = {"rows": float(self.window.num_filled), "effective_rank": trace**2 / squares if squares else 0.0}
        newest = self.window.newest
        if trace == 0 or newest is None:
            return found
        found["damping"] = algebra.damping
        found["gradient_norm"] = max(0.0, float(gram[newest, newest])) ** 0.5
        found["largest_eigenvalue"] = _largest_eigenvalue(gram)
        if u is not None:
            found["update_norm"] = u.squared_norm**0.5
            found["curvature"] = u.curvature(algebra.damping, algebra.num_terms)
            found["slope"] = u.slope
            found["gain"] = u.gain
        return found

    def __deepcopy__(self, memo: dict[int, Any]) -> GroupWindow:
        """A copy whose options and parameters are those that `memo` has for them."""
        from copy import deepcopy

        other = object.__new__(type(self))
        memo[id(self)] = other
        pieces = self.columns.pieces
        memo[id(pieces)] = pieces  # process groups are no more copied than processes
        for name, value in self.__dict__.items():
            setattr(other, name, deepcopy(value, memo))
        return other


def _largest_eigenvalue(gram: Tensor, steps: int = 10) -> float:
    """Of K/1, by power iteration: a lower bound that is close where one eigenvalue stands out."""
    full = gram.tril() + gram.tril(-1).T
    v = full.diagonal().sqrt()
    for _ in range(steps):
        v = full @ v
        v = v / v.norm()
    return float(v @ full @ v)
