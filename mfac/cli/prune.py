"""`mfac prune`: a plan, the run, and the files of the run."""

from __future__ import annotations

import argparse
import math
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mfac.cli.loading import load_data, load_model, load_object
from mfac.cli.progress import shown_progress
from mfac.curvature.damping import RelativeDamping, relative
from mfac.masks.export import plain_state_dict, save_compact
from mfac.masks.masks import Masks
from mfac.pruning import pruner
from mfac.pruning.report import PruningReport

FILES = ("model.pt", "masks.safetensors", "masks.pt", "report.json", "model_compact.pt")


def cross_entropy(model: nn.Module, batch: Any) -> Tensor:
    """The default loss: cross entropy of model(batch[0]) and batch[1], on the model's device."""
    device = next(model.parameters()).device
    return nn.functional.cross_entropy(model(batch[0].to(device)), batch[1].to(device))


def prune_command(arguments: argparse.Namespace) -> None:
    """Prunes a model and writes the result.

    Args:
        arguments: Of the command line.

    Raises:
        ValueError: If an argument is not as it should be; nothing has been computed then.
    """
    out, options = Path(arguments.out), prune_options(arguments)
    _check(arguments, out)
    model = load_model(arguments.model)
    if arguments.device is not None:
        model.to(arguments.device)
    data = load_data(arguments.data)
    loss_fn = cross_entropy if arguments.loss is None else load_object("loss", arguments.loss)
    print(plan_text(model, loss_fn, data, options), flush=True)
    if arguments.plan:
        return
    out.mkdir(parents=True, exist_ok=True)  # what cannot be written is refused before the work
    if arguments.checkpoint is not None:
        options["checkpoint"] = arguments.checkpoint
    with shown_progress() as progress:
        report = pruner.prune(model, loss_fn, data, progress=progress, **options)
    report.measure(model)
    write(out, model, report, compact=arguments.compact)
    print(report)
    for path in sorted(out.iterdir()):
        if path.name in FILES:
            print(f"{path}: {path.stat().st_size} bytes")


def _check(arguments: argparse.Namespace, out: Path) -> None:
    """Refuses what cannot end well before a model is loaded."""
    if arguments.resume and arguments.checkpoint is None:
        raise ValueError("Parameter `--resume` should come with --checkpoint DIR, where the run was kept. Found none.")
    kept = arguments.checkpoint is not None and Path(arguments.checkpoint, "run.pt").exists()
    if kept and not arguments.resume:
        raise ValueError(
            f"Parameter `--checkpoint` should be a folder without a run, or come with --resume. Found one in "
            f"{arguments.checkpoint!r}."
        )
    if arguments.resume and not kept:
        raise ValueError(f"Parameter `--resume` should find a run. Found none in {arguments.checkpoint!r}.")
    there = [name for name in FILES if (out / name).exists()]
    if there and not arguments.overwrite and not arguments.plan:
        raise ValueError(
            f"Parameter `--out` should be a folder without an earlier result, or come with --overwrite. "
            f"Found {there} in {str(out)!r}."
        )


def prune_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Arguments of `mfac.prune` beside model, loss and data; without the options not given."""
    names = (
        "sparsity", "params", "pattern", "saliency", "compensation", "allocation", "schedule", "seed",
        "num_gradients", "stages", "recomputations", "block_size", "effort", "time_budget", "gradients", "per_sample",
    )  # fmt: skip
    options = {name: value for name in names if (value := getattr(arguments, name)) is not None}
    if arguments.damping is not None:
        options["damping"] = damping_of(arguments.damping)
    return options


def damping_of(text: str) -> float | RelativeDamping | str:
    """What `--damping` means.

    Args:
        text: A number, "relative:" and a number, or "auto".

    Returns:
        A value for the argument `damping` of `mfac.prune`.

    Raises:
        ValueError: If it is something else.
    """
    kind, colon, number = text.rpartition(":")
    if text == "auto":
        return text
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if math.isnan(value) or (colon and kind != "relative"):
        raise ValueError(f"Parameter `--damping` should be a number, relative:C or auto. Found {text!r}.")
    return relative(value) if colon else value


def plan_text(model: nn.Module, loss_fn: Any, data: Any, options: dict[str, Any]) -> str:
    """What the run will do, before it begins."""
    return str(pruner.plan(model, loss_fn, data, **options))


def write(out: Path, model: nn.Module, report: PruningReport, *, compact: bool = False) -> None:
    """Writes the pruned weights, their masks and the report.

    Args:
        out: The folder.
        model: As pruning left it.
        report: Of the run.
        compact: Whether to write bits and kept values too.
    """
    for name in FILES:
        (out / name).unlink(missing_ok=True)
    masks = Masks(report.masks)
    torch.save(plain_state_dict(model, masks), out / "model.pt")
    masks.save(out / ("masks.pt" if find_spec("safetensors") is None else "masks.safetensors"))
    if compact:
        save_compact(model, masks, out / "model_compact.pt")
    report.to_json(out / "report.json", masks=False)
