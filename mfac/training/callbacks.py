"""Masked training inside of Hugging Face's `Trainer` and of Lightning's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from mfac.training.masked import MaskedTraining
from mfac.training.recipe import Recipe

STATE = "mfac_masks.pt"
"""The file in a checkpoint's folder."""

Make = Callable[[int], Recipe]
"""Makes a recipe of the number of steps that there will be."""


def trainer_callback(recipe: Recipe | Make, **arguments: Any) -> Any:
    """A callback for Hugging Face's `Trainer`: `Trainer(..., callbacks=[callback])`.

    Masks start with the training; each checkpoint has a file "mfac_masks.pt" beside the model's,
    and a training that is resumed from there goes on with it.

    Args:
        recipe: A recipe, or a function that makes one of the number of steps of the training.
        **arguments: Of `mfac.MaskedTraining`.

    Returns:
        A `transformers.TrainerCallback`; its `training` is the `mfac.MaskedTraining`, None before
        the training begins.

    Raises:
        ImportError: If transformers is not installed.
    """
    base = _base("transformers", "transformers", "TrainerCallback")

    class MaskedTrainingCallback(base):  # type: ignore[valid-type, misc]
        """Starts, saves and resumes masked training."""

        training: MaskedTraining | None = None

        def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            """Makes the training; takes up the state of the step that is resumed from."""
            optimizer = _inner_optimizer(given["optimizer"])
            self.training = _made(given["model"], optimizer, recipe, state.max_steps, arguments)
            if state.global_step:
                found = _state_file(args, state.global_step)
                self.training.load_state_dict(torch.load(found, weights_only=True))

        def on_save(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            """Writes the state into the checkpoint's folder."""
            if self.training is not None and state.is_world_process_zero:
                folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
                if folder.is_dir():
                    torch.save(self.training.state_dict(), folder / STATE)

        def on_train_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            """Takes the hooks away; the zeros stay."""
            if self.training is not None:
                self.training.remove()

    return MaskedTrainingCallback()


def lightning_callback(recipe: Recipe | Make, **arguments: Any) -> Any:
    """A callback for Lightning: `Trainer(callbacks=[callback])`; checkpoints hold its state.

    Args:
        recipe: A recipe, or a function that makes one of the number of steps of the training.
        **arguments: Of `mfac.MaskedTraining`.

    Returns:
        A `lightning.pytorch.Callback`; its `training` is the `mfac.MaskedTraining`, None before the
        training begins.

    Raises:
        ImportError: If neither lightning nor pytorch_lightning is installed.
    """
    module = "lightning.pytorch" if find_spec("lightning") is not None else "pytorch_lightning"
    base = _base(module.split(".")[0], module, "Callback")

    class MaskedTrainingCallback(base):  # type: ignore[valid-type, misc]
        """Starts, saves and resumes masked training."""

        training: MaskedTraining | None = None
        _waiting: Mapping[str, Any] | None = None

        def on_train_start(self, trainer: Any, pl_module: nn.Module) -> None:
            """Makes the training; takes up the state that a checkpoint had."""
            steps = int(trainer.estimated_stepping_batches)
            self.training = _made(pl_module, list(trainer.optimizers), recipe, steps, arguments)
            if self._waiting:
                self.training.load_state_dict(self._waiting)

        def on_train_end(self, trainer: Any, pl_module: nn.Module) -> None:
            """Takes the hooks away; the zeros stay."""
            if self.training is not None:
                self.training.remove()

        def state_dict(self) -> dict[str, Any]:
            """Of the training."""
            return {} if self.training is None else self.training.state_dict()

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            """Kept until the training begins."""
            self._waiting = state_dict

    return MaskedTrainingCallback()


def _made(
    model: nn.Module,
    optimizer: Optimizer | Sequence[Optimizer],
    recipe: Recipe | Make,
    steps: int,
    arguments: Mapping[str, Any],
) -> MaskedTraining:
    chosen = recipe if isinstance(recipe, Recipe) else recipe(steps)
    return MaskedTraining(model, optimizer, chosen, **arguments)


def _inner_optimizer(optimizer: Any) -> Optimizer:
    """What accelerate has wrapped."""
    while type(optimizer).__name__ == "AcceleratedOptimizer":
        optimizer = optimizer.optimizer
    found: Optimizer = optimizer
    return found


def _state_file(args: Any, step: int) -> Path:
    """Where the state of a step is, in the folder that the training is resumed from."""
    folders = [Path(args.output_dir) / f"checkpoint-{step}"]
    if isinstance(getattr(args, "resume_from_checkpoint", None), str):
        folders.insert(0, Path(args.resume_from_checkpoint))
    for folder in folders:
        if (folder / STATE).is_file():
            return folder / STATE
    raise FileNotFoundError(
        f"The training that is resumed at step {step} should have the state of its masks in its checkpoint. "
        f"Found no {STATE!r} in {[str(folder) for folder in folders]}."
    )


def _base(package: str, module: str, name: str) -> Any:
    if find_spec(package) is None:
        raise ImportError(f"The callback needs {package}: `pip install {package}`. Found no such module.")
    return getattr(import_module(module), name)
