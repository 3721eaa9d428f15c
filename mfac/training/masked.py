"""`MaskedTraining`: masks that a recipe changes, beside any training loop."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import LBFGS, Optimizer

from mfac.core.checks.numbers import check_count
from mfac.curvature.damping import Damping
from mfac.curvature.fisher import EmpiricalFisher
from mfac.gradients.backward import LossFunction
from mfac.gradients.parameters import Selection
from mfac.masks.attachment import MaskHandle, state_of
from mfac.masks.masks import Masks
from mfac.training.change import MaskChange, plot_log, write_log
from mfac.training.checked import (
    checked_keys,
    checked_masks,
    checked_optimizers,
    needs_fisher,
    seed_apart,
    was_skipped,
    will_skip,
)
from mfac.training.context import ChangeContext
from mfac.training.curvature import DAMPING, FisherSource
from mfac.training.description import describe, difference
from mfac.training.progress import VERSION, Progress
from mfac.training.recipe import Recipe
from mfac.training.snapshot import Snapshot
from mfac.training.tensors import MaskedTensors, agreed
from mfac.training.undo import Undo
from mfac.training.watching import Watcher

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class MaskedTraining:
    """Masks beside a training loop, which a recipe changes on the way; dropped weights stay zero.

    Hooks of the optimizer do the work: they count its steps, keep dropped weights, their gradients
    and their state at exactly zero, and change the masks when the recipe says so, after the step.
    Weights that come back are zero, with a state of zero. A step that a `GradScaler` skips, or
    `mfac.MFAC(nonfinite="skip")`, does not count; accumulated gradients are one step. The model's
    and the optimizer's `state_dict` are as ever; save `state_dict()` beside them.

    Args:
        model: The model, wrapped or not.
        optimizer: Any of torch's base class that has the masked parameters; several as a list, for
            networks that are trained by more than one.
        recipe: What happens when: `mfac.recipes.GMP`, `ACDC`, `RigL`, `SNFS`, `DSR`, `SET`, `SNIP`,
            `LotteryTicket`, `Static`, or one of your own.
        params: Which parameters get a mask: names, shell-style patterns, parameters or a predicate.
            None for the weights of linear layers, convolutions, recurrent layers and attentions;
            biases, norms and embeddings are left out.
        masks: Masks at the start, as of `mfac.Masks.from_zeros(model)`: parameters that it does not
            name are whole.
        loss_fn: `loss_fn(model, batch)`, as of `mfac.prune`: for saliencies that need a Fisher
            where no `mfac.MFAC` has a window.
        data: Batches for it.
        num_gradients: m, where gradients are collected.
        damping: λ of such a Fisher, and of one of a live window.
        seed: Of random masks.
        process_group: Of `torch.distributed`, whose processes train copies of the model: masks are
            those of its first process, by one broadcast a change. None for the group of a
            `DistributedDataParallel`. DTensor parameters need none: each process sees them whole.
        keep_state: As of `mfac.Masks.attach`.

    Raises:
        TypeError: If a type is wrong.
        ValueError: If no optimizer has a masked parameter, masks are of other shapes, or the recipe
            does not fit the weights.

    Attributes:
        recipe: As given.
        left_dense: Name of every weight tensor without a mask, and why.

    Example:
        >>> import torch, mfac
        >>> model = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
        >>> optimizer = torch.optim.AdamW(model.parameters())
        >>> recipe = mfac.recipes.RigL(sparsity=0.9, end=75, every=25)
        >>> training = mfac.MaskedTraining(model, optimizer, recipe)
        >>> for _ in range(100):
        ...     optimizer.zero_grad()
        ...     model(torch.randn(8, 16)).square().mean().backward()
        ...     optimizer.step()
        ...     _ = training.step()
        >>> training.masks
        Masks(2 tensors, 32 of 320 weights kept, sparsity 0.9000)
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | Sequence[Optimizer],
        recipe: Recipe,
        *,
        params: Selection = None,
        masks: Mapping[str, Tensor] | None = None,
        loss_fn: LossFunction | None = None,
        data: Iterable[Any] | None = None,
        num_gradients: int = 64,
        damping: Damping = DAMPING,
        seed: int = 0,
        process_group: ProcessGroup | None = None,
        keep_state: Collection[str] = (),
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"Parameter `model` should be a torch.nn.Module. Found {type(model).__name__}.")
        self._optimizers = checked_optimizers(optimizer)
        keep_state = checked_keys(keep_state)
        if not isinstance(recipe, Recipe):
            raise TypeError(
                f"Parameter `recipe` should be a Recipe, as of mfac.recipes. Found {type(recipe).__name__}."
            )
        self.model, self.recipe = model, recipe
        self._tensors = MaskedTensors(model, params)
        self.left_dense = self._tensors.left_dense
        self._tensors.check_held(self._optimizers)
        self._group = process_group
        if process_group is None and isinstance(model, DistributedDataParallel):
            self._group = model.process_group
        self._fishers = FisherSource(model, self._optimizers, loss_fn, data, num_gradients, damping)
        self._watcher = Watcher(self._tensors, self._optimizers, recipe)
        self._reported: MaskChange | None = None
        given = self._tensors.joined_masks({} if masks is None else Masks(masks))
        generator = torch.Generator().manual_seed(seed_apart(check_count("seed", seed)))
        self._progress = Progress(given, len(self._optimizers), generator)
        recipe.check(self._tensors.weights, given)
        if needs_fisher(recipe):
            self._fishers.check(self._tensors.parameters)
        first = agreed(checked_masks(recipe.start(self._context()), given), self._group)
        self._progress.kept = first
        self._hooks: list[Any] = []
        for number, each in enumerate(self._optimizers):  # before masks: they clear gradients that a recipe wants
            self._hooks.append(each.register_step_pre_hook(self._before(number)))
        own = self._tensors.masks(first)
        self._undo: Undo | None = Undo(self._masked_tensors(own))
        self._handles = [
            MaskHandle(model, each, own, keep_state) for each in self._optimizers if self._tensors.held_by(each)
        ]
        for number, each in enumerate(self._optimizers):
            self._hooks.append(each.register_step_post_hook(self._after(number)))
        if not bool(first.all()):
            self._progress.change(first, 0, self._tensors.sizes)

    def _masked_tensors(self, masks: Mapping[str, Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Every tensor that masks are applied to: weights, and what optimizers keep for each."""
        for name, mask in masks.items():
            for leaf in self._tensors.leaves(name):
                yield leaf, mask
                for optimizer in self._optimizers:
                    for value in state_of(optimizer, leaf).values():
                        if isinstance(value, Tensor) and value.shape == mask.shape:
                            yield value, mask

    @property
    def masks(self) -> Masks:
        """The masks as they are: parameter name to bool tensor of its shape, True = kept."""
        return Masks({name: mask.clone() for name, mask in self._tensors.masks(self._progress.kept).items()})

    @property
    def changes(self) -> list[MaskChange]:
        """What was changed so far; the masks at the start are the first if they have zeros."""
        return self._progress.changes

    @property
    def steps(self) -> int:
        """Steps of the optimizer so far; with several, of the one that has taken the fewest."""
        return self._progress.steps

    @property
    def sparsity(self) -> float:
        """Share of zeros among all weights with masks."""
        return 1 - int(self._progress.kept.sum()) / self._progress.kept.numel()

    @property
    def snapshot(self) -> dict[str, Tensor] | None:
        """Parameters and buffers by name, as they were when the recipe said so; None before.

        Of `mfac.recipes.ACDC` it is the dense model.
        """
        return None if self._progress.snapshot is None else dict(self._progress.snapshot.tensors)

    @property
    def position(self) -> int:
        """Steps that a learning-rate schedule has behind it; goes back where a recipe rewinds."""
        return self.recipe.position(self.steps)

    def step(self) -> MaskChange | None:
        """Tells what the last step of the optimizer changed; all work is done by then.

        Returns:
            The change, once; None where masks are as they were.
        """
        done = self.changes[-1] if self.changes and self.changes[-1].step == self.steps else None
        if done is None or done.step == 0 or done is self._reported:
            return None
        self._reported = done
        return done

    def remove(self) -> None:
        """Takes the hooks away; weights are free to come back. A second call does nothing."""
        for hook in (*self._hooks, *self._handles):
            hook.remove()
        self._hooks, self._handles = [], []

    def __deepcopy__(self, memo: object) -> MaskedTraining:
        raise TypeError(
            "A masked training is not copied, as its hooks are on one optimizer: make another for the copies of model "
            "and optimizer, and load the `state_dict` of this one."
        )

    def __enter__(self) -> MaskedTraining:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def save_log(self, path: str | os.PathLike[str]) -> None:
        """Writes all changes as JSON: sparsity by layer, drop and grow counts, unchanged share.

        Args:
            path: Of the file, which appears whole or not at all.
        """
        write_log(self.changes, self._tensors.sizes, path)

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draws all changes: sparsity, masks that never changed, and each layer's sparsity.

        Args:
            path: Of the picture.

        Raises:
            ImportError: If matplotlib is not installed.
            RuntimeError: If nothing has changed yet.
        """
        if not self.changes:
            raise RuntimeError("There is nothing to draw: masks have not changed yet.")
        plot_log(self.changes, self._tensors.sizes, path)

    def _before(self, number: int) -> Callable[..., Any]:
        """The hook before a step of an optimizer; a closure is seen where it computes gradients."""

        def hook(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            closure = args[1] if len(args) > 1 else kwargs.get("closure")
            if not callable(closure):
                self._see(number)
                return None

            def seen() -> Any:
                loss = closure()
                self._see(number)
                return loss

            if len(args) > 1:
                return (args[0], seen, *args[2:]), kwargs
            return args, {**kwargs, "closure": seen}

        return hook

    @torch.no_grad()
    def _see(self, number: int) -> None:
        """Takes what the recipe wants of the gradients of the step that comes."""
        self._undo = None
        if will_skip(self._optimizers[number]):
            return
        progress, step = self._progress, self.steps + 1
        progress.move(self._tensors.device)
        if self.recipe.snapshot_at == 0 and progress.snapshot is None and not any(progress.counts):
            self._take_snapshot()
        early = self._watcher.see(number, progress.counts, progress.memory)
        if early and not (self.changes and self.changes[-1].step == step):  # closures are called again and again
            self._change(step)

    def _after(self, number: int) -> Callable[..., None]:
        """The hook after a step of an optimizer."""

        def hook(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if was_skipped(optimizer):
                return
            before = self.steps
            self._progress.counts[number] += 1
            if self.steps > before:
                self._finish_step()

        return hook

    def _finish_step(self) -> None:
        step = self.steps
        if self.recipe.snapshot_at == step:
            self._take_snapshot()
        if self.recipe.is_due(step) and not self.recipe.is_before_update(step):
            self._change(step)
        if self.recipe.rewinds(step):
            assert self._progress.snapshot is not None
            self._apply(self._tensors.masks(self._progress.snapshot.kept))
            self._progress.snapshot.restore(self.model, self._optimizers)
            self._apply(self._tensors.masks(self._progress.kept))
        if len(set(self._progress.counts)) == 1:  # otherwise one is ahead, and will not show them again
            self._watcher.forget()

    def _take_snapshot(self) -> None:
        with_state = self._optimizers if self.recipe.rewinds_to_snapshot else []
        self._progress.snapshot = Snapshot.of(self.model, with_state, self._progress.kept)

    @torch.no_grad()
    def _change(self, step: int) -> None:
        context = self._context(step)
        before = self._progress.kept
        after = agreed(checked_masks(self.recipe.change(context), before), self._group)
        self._progress.change(after, step, self._tensors.sizes)
        own, old = self._tensors.masks(after), self._tensors.masks(before)
        self._apply({name: mask for name, mask in own.items() if not torch.equal(mask, old[name])})
        for optimizer in self._optimizers:
            if isinstance(optimizer, LBFGS):  # whose history is of all weights in one vector
                optimizer.state.clear()

    def _apply(self, masks: Mapping[str, Tensor]) -> None:
        for handle in self._handles:
            handle.change(masks)

    def _context(self, step: int = 0) -> ChangeContext:
        return ChangeContext(
            step,
            self._tensors.weights,
            self._progress.kept.clone(),  # which a recipe may write into
            values=self._tensors.flat,
            gradient=self._watcher.dense,
            fisher=self._fisher,
            memory=self._progress.memory,
            generator=self._progress.generator,
        )

    def _fisher(self) -> EmpiricalFisher:
        kept = [mask.reshape(-1) for mask in self._tensors.masks(self._progress.kept).values()]
        return self._fishers.fisher(self._tensors.parameters, kept)

    def state_dict(self) -> dict[str, Any]:
        """All that a training of the same recipe needs to go on; save it beside the model's state.

        Returns:
            Tensors, numbers, strings, and lists and dicts of these: `torch.load` reads it with
            `weights_only=True`. Masks take a bit a weight; a snapshot is by reference.
        """
        return {
            "version": VERSION,
            "recipe": describe(self.recipe),
            "shapes": {weight.name: list(weight.shape) for weight in self._tensors.weights},
            "progress": self._progress.state_dict(),
            "fisher": self._fishers.state_dict(),
            "gradients": self._watcher.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where another training was; load model and optimizer too, before or after.

        Args:
            state: Of `state_dict`.

        Raises:
            KeyError: If an entry is missing.
            ValueError: If it is of another recipe, other parameters, or another number of
                optimizers. Nothing is changed then.
        """
        if state["version"] != VERSION:
            raise ValueError(f"Parameter `state` should be of version {VERSION}. Found {state['version']!r}.")
        if found := difference(describe(self.recipe), state["recipe"]):
            raise ValueError(f"Parameter `state` should be of the recipe of this training. Found another: {found}.")
        shapes = {weight.name: list(weight.shape) for weight in self._tensors.weights}
        if shapes != state["shapes"]:
            names = [name for name in {**shapes, **state["shapes"]} if shapes.get(name) != state["shapes"].get(name)]
            raise ValueError(
                f"Parameter `state` should have masks of this training's parameters. Found others: "
                f"{names[0]!r} is {state['shapes'].get(names[0])} there and {shapes.get(names[0])} here."
            )
        progress = state["progress"]
        self._fishers.load_state_dict(state["fisher"])
        self._progress.load_state_dict(progress)
        self._watcher.load_state_dict(state.get("gradients", {}))
        self._reported = self.changes[-1] if self.changes else None
        if self._undo is not None:  # the masks at the start may have dropped what the state's keep
            self._undo.restore()
            self._undo = None
        self._apply(self._tensors.masks(self._progress.kept))
