"""`mfac verify` and `mfac report`: what `mfac prune` wrote, proved and shown."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import nn

from mfac.cli.loading import load_model
from mfac.masks.export import load_plain_
from mfac.masks.masks import Masks
from mfac.pruning.report import PruningReport
from mfac.pruning.verify import verify


def verify_command(arguments: argparse.Namespace) -> None:
    """Loads the weights of a result into a model, and proves the report on it.

    Args:
        arguments: Of the command line.
    """
    folder = Path(arguments.folder)
    report = read_report(folder)
    model: nn.Module = load_model(arguments.model)
    load_plain_(model, torch.load(folder / "model.pt", map_location="cpu", weights_only=True))
    for line in verify(model, report):
        print(f"holds: {line}")


def report_command(arguments: argparse.Namespace) -> None:
    """Prints the report of a result, and draws it where that is asked for.

    Args:
        arguments: Of the command line.
    """
    folder = Path(arguments.folder)
    report = read_report(folder)
    print(report)
    if arguments.plot is not None:
        path = folder / arguments.plot if arguments.plot == "report.png" else Path(arguments.plot)
        report.plot(path)
        print(path)


def read_report(folder: Path) -> PruningReport:
    """The report in a folder, with its masks.

    Args:
        folder: That `mfac prune` wrote.

    Returns:
        The report.

    Raises:
        FileNotFoundError: If there is none.
    """
    found = [path for name in ("masks.safetensors", "masks.pt") if (path := folder / name).exists()]
    if not found or not (folder / "report.json").exists():
        raise FileNotFoundError(
            f"Parameter `DIR` should hold what `mfac prune --out DIR` wrote. Found no report.json with masks in "
            f"{str(folder)!r}."
        )
    return PruningReport.from_json(folder / "report.json", Masks.load(found[0]))
