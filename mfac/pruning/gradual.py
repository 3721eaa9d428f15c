"""Gradual pruning inside a training loop: `Pruner.step()` after each step of the optimizer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from inspect import signature
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from mfac.core.checks.choices import did_you_mean
from mfac.core.checks.numbers import check_count, check_number
from mfac.core.named import resolve
from mfac.gradients.backward import LossFunction
from mfac.gradients.batches import BatchStream
from mfac.gradients.collecting import check_model_and_loss, resolve_mode
from mfac.pruning.pruner import prune
from mfac.pruning.report import PruningReport, PruningStep
from mfac.pruning.run import Run
from mfac.pruning.schedule import SCHEDULES, Cubic, Schedule, ScheduleName
from mfac.pruning.settings import checked_settings
from mfac.pruning.targets import choose_targets
from mfac.pruning.torch_masks import update_torch_masks_

_NUM_GRADIENTS = 64  # of an event, where it is not given

GradualName = ScheduleName | Literal["gmp"]
"""Name of a schedule over a training run."""


class GMP(Schedule):
    """A drop at once, then cubic: the network has most of the training to recover in.

    Args:
        drop: Share of the weights to go that go in the first step.

    Raises:
        ValueError: If `drop` is not between 0 and 1.

    Source: Kurtic, Alistarh, "GMP*" (2210.06384), section 3.
    """

    def __init__(self, drop: float = 0.5) -> None:
        self.drop = check_number("drop", drop, above=0, below=1)

    def kept(self, live: int, final: int, steps: int) -> list[int]:
        """Live - drop (live - final) after the first step, and cubic from there."""
        if steps == 1:
            return [final]
        first = live - round(self.drop * (live - final))
        return [first, *Cubic().kept(first, final, steps - 1)]


class Pruner:
    """Prunes a network step by step while it is trained, and keeps pruned weights at zero.

    Call `step()` after each `optimizer.step()`. At the steps `begin`, `begin + every`, ... up to
    `end` it collects gradients at the weights as they are, drops the weights that the schedule
    says, and moves the others as `prune` does. At every step it sets the dropped weights to exactly
    zero again.

    Args:
        model: The model, as it is trained.
        optimizer: The optimizer of the parameters: the momenta of dropped weights are set to zero.
        loss_fn: `loss_fn(model, batch)` returns a scalar, the mean over the batch.
        data: Batches for the gradients, gone through again and again.
        sparsity: Share of zeros in the end, as of `prune`.
        end: The last step that may prune, counted from 1.
        begin: The first step that may prune.
        every: Steps from one pruning step to the next.
        schedule: "cubic"; "geometric"; "linear"; "gmp", half of the drop at once and then cubic; or
            a `Schedule`.
        num_gradients: m, of each pruning step; None for 64, or fewer where a pass over the data has
            fewer.
        **arguments: Of `prune`: params, saliency, compensation, pattern, allocation, damping,
            block_size, seed, existing_zeros, mode, per_sample, gradients. A relative damping is
            relative to each step's own gradients.

    Attributes:
        count: Steps so far.
        events: The steps that prune.
        report: What was done so far, and the masks.

    Raises:
        TypeError: As `prune` does.
        ValueError: As `prune` does, or if no step prunes.

    Example:
        >>> import torch, mfac
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Linear(6, 4)
        >>> data = [(x := torch.randn(16, 6), x.argmax(1) % 4) for _ in range(24)]
        >>> loss_fn = lambda model, batch: torch.nn.functional.cross_entropy(model(batch[0]), batch[1])
        >>> optimizer = torch.optim.AdamW(model.parameters())
        >>> pruner = mfac.Pruner(model, optimizer, loss_fn, data, sparsity=0.5, begin=2, end=20, every=6)
        >>> for batch in data:
        ...     optimizer.zero_grad()
        ...     loss_fn(model, batch).backward()
        ...     optimizer.step()
        ...     _ = pruner.step()
        >>> pruner.events, int((model.weight == 0).sum())
        ([2, 8, 14, 20], 12)
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        loss_fn: LossFunction,
        data: Iterable[Any],
        sparsity: float | None = None,
        *,
        end: int,
        begin: int = 1,
        every: int = 1,
        schedule: GradualName | Schedule = "cubic",
        num_gradients: int | None = None,
        **arguments: Any,
    ) -> None:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(
                f"Parameter `optimizer` should be a torch.optim.Optimizer. Found {type(optimizer).__name__}."
            )
        check_model_and_loss(model, loss_fn)
        own = {id(parameter) for parameter in model.parameters()}
        if not any(id(parameter) in own for group in optimizer.param_groups for parameter in group["params"]):
            raise ValueError(
                "Parameter `optimizer` should have parameters of `model`, whose state it keeps. Found none of them."
            )
        self.model, self.optimizer, self.count = model, optimizer, 0
        check_count("begin", begin, least=1)
        self.events = list(range(begin, check_count("end", end, least=begin) + 1, check_count("every", every, least=1)))
        self._schedule: Schedule = resolve(
            "schedule",
            schedule,
            {**SCHEDULES, "gmp": GMP},
            Schedule,  # type: ignore[type-abstract]
        )
        defaults = {name: option.default for name, option in signature(prune).parameters.items()}
        for name in arguments.keys() - _SHARED:
            raise TypeError(
                f"Parameter `arguments` should be of {sorted(_SHARED)}. Found {name!r}{did_you_mean(name, _SHARED)}"
            )
        given = {**defaults, **arguments, "sparsity": sparsity, "num_gradients": num_gradients}
        settings = checked_settings(given)
        passes_over = settings.rules.pattern.passes_over
        targets = choose_targets(model, settings.params, settings.existing_zeros, passes_over=passes_over)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(settings.seed)
            stream = BatchStream(data)
            mode = resolve_mode(model, loss_fn, stream, settings.mode) if settings.rules.needs_loss else "eval"
            self._random = torch.default_generator.get_state()
        rank = min(_NUM_GRADIENTS, stream.length or _NUM_GRADIENTS) if num_gradients is None else num_gradients
        settings = replace(settings, num_gradients=rank, stages=1, recomputations=1)
        self._run = Run(model, loss_fn, stream, targets, settings, mode)

    @property
    def report(self) -> PruningReport:
        """What was done so far, with the masks as they are."""
        self._run.finish_report()
        return self._run.report

    @property
    def masks(self) -> dict[str, Tensor]:
        """Parameter name to mask of its shape, True = kept."""
        return self.report.masks

    def step(self) -> PruningStep | None:
        """Prunes if it is time to, and keeps zeros. Call it after each step of the optimizer.

        Returns:
            What was done, or None where nothing was pruned.

        Raises:
            ValueError: If the data runs out, or a gradient is not finite. The weights are then as
                the optimizer left them, but for the zeros.
        """
        self.count += 1
        self._run.reread_weights()
        done = self._prune(self.events.index(self.count)) if self.count in self.events else None
        if done is not None:
            update_torch_masks_(self.model, self.masks)
            self._forget_momenta()
        return done

    def _prune(self, number: int) -> PruningStep | None:
        run = self._run
        run.damping = run.settings.damping
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.set_state(self._random)
            if run.kept_after is None:
                run.plan_steps(self._schedule, len(self.events))
            assert run.kept_after is not None
            done = None
            if number < len(run.kept_after):
                found = run.step(run.kept_after[number], stage_goes_on=False)
                reached = 1 - int(run.live.sum()) / run.vector.dim
                numbers = (reached, found.damping, found.predicted_increase)
                done = PruningStep(number + 1, len(self.events), number + 1, *numbers, 0.0)
                run.report.steps.append(done)
            self._random = torch.default_generator.get_state()
        return done

    @torch.no_grad()
    def _forget_momenta(self) -> None:
        """Zeroes the optimizer's memory of dropped weights, in every state of a weight's shape."""
        for name, piece in self._run.vector.pieces(self._run.live):
            parameter = self._run.vector.parameters[name]
            for value in self.optimizer.state.get(parameter, {}).values():
                if isinstance(value, Tensor) and value.shape == parameter.shape and value.is_floating_point():
                    value.mul_(piece)

    def state_dict(self) -> dict[str, Any]:
        """All that a pruner over the same model needs to go on; save it beside the model's state.

        Returns:
            Tensors, numbers, strings, and lists and dicts of these.
        """
        return {"count": self.count, "run": self._run.state_dict(), "random": self._random}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where another pruner was. Load the model and the optimizer first.

        Args:
            state: Of `state_dict`.

        Raises:
            ValueError: If the state is of a model with other weights, or the data ends too early.
        """
        run, saved = self._run, state["run"]
        self.count, self._random = state["count"], state["random"]
        with torch.random.fork_rng(devices=[]):
            run.load_state_dict(saved, write=False)
        run.reread_weights()


_SHARED = {
    *("params", "saliency", "compensation", "pattern", "allocation", "damping", "block_size", "seed"),
    *("existing_zeros", "mode", "per_sample", "gradients"),
}
