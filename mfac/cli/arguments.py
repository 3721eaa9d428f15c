"""The command line's arguments."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from mfac.pruning.allocation import ALLOCATIONS
from mfac.pruning.compensation import COMPENSATIONS
from mfac.pruning.saliency import SALIENCIES
from mfac.pruning.schedule import SCHEDULES

Command = Callable[[argparse.Namespace], None]


def parser(prune: Command, verify: Command, report: Command) -> argparse.ArgumentParser:
    """The parser of `mfac prune`, `mfac verify` and `mfac report`.

    Args:
        prune: What each command does with its arguments.
        verify: See `prune`.
        report: See `prune`.

    Returns:
        The parser; a namespace it makes has `command`, the function.
    """
    top = argparse.ArgumentParser("mfac", description="Prunes networks with second-order information.")
    top.add_argument("--traceback", action="store_true", help="show where an error comes from")
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    _prune(commands.add_parser("prune", help="prune a model, and write weights, masks and a report"), prune)
    of_verify = commands.add_parser("verify", help="prove that a pruned model is what its report says")
    of_verify.add_argument("folder", metavar="DIR", help="that `mfac prune --out` wrote")
    of_verify.add_argument("model", metavar="MODEL", help="file.py:factory; the weights are those in DIR")
    of_verify.set_defaults(command=verify)
    of_report = commands.add_parser("report", help="print the report of a pruned model")
    of_report.add_argument("folder", metavar="DIR", help="that `mfac prune --out` wrote")
    of_report.add_argument(
        "--plot",
        nargs="?",
        const="report.png",
        metavar="FILE",
        help="draw it too, into FILE or DIR/report.png; needs matplotlib",
    )
    of_report.set_defaults(command=report)
    return top


def _prune(of: argparse.ArgumentParser, command: Command) -> None:
    of.add_argument("model", metavar="MODEL", help="file.py:factory, or package.module:factory")
    of.add_argument("data", metavar="DATA", help="file.py:loader, batches or what makes them")
    of.add_argument("--sparsity", type=float, help="share of zeros in the end")
    of.add_argument(
        "--loss",
        metavar="file.py:loss_fn",
        help="loss_fn(model, batch); otherwise the cross entropy of model(batch[0]) and batch[1]",
    )
    of.add_argument("--pattern", default="unstructured", help="unstructured; N:M as 2:4; AxB as 4x1; rows; channels")
    of.add_argument("--saliency", default="greedy", help=f"{', '.join(SALIENCIES)} (default: greedy)")
    of.add_argument("--compensation", default="auto", help=f"{', '.join(COMPENSATIONS)} (default: auto)")
    of.add_argument("--allocation", default="global", help=f"{', '.join(ALLOCATIONS)} (default: global)")
    of.add_argument("--schedule", default="geometric", help=f"{', '.join(SCHEDULES)} (default: geometric)")
    of.add_argument("--params", nargs="+", metavar="NAME", help="names or shell-style patterns of what is pruned")
    of.add_argument("--num-gradients", type=int, metavar="M", help="gradients of a stage")
    of.add_argument("--stages", type=int, help="how often fresh gradients are collected")
    of.add_argument("--recomputations", type=int, help="pruning steps of a stage")
    of.add_argument("--damping", metavar="LAMBDA", help="a number, relative:C as relative:0.01, or auto")
    of.add_argument("--block-size", type=int, metavar="B", help="of a block-diagonal Fisher")
    of.add_argument("--effort", metavar="HOW", help="fast, default or best: how long a run may take")
    of.add_argument("--time-budget", type=float, metavar="SECONDS", help="that a run may take, in place of an effort")
    of.add_argument("--gradients", metavar="WHERE", help="ram, bf16, or a folder that their file is in")
    of.add_argument("--per-sample", action="store_true", default=None, help="a gradient a sample, not one a batch")
    of.add_argument("--seed", type=int, default=0)
    of.add_argument("--device", help="where to, as cuda; otherwise where the factory puts the model")
    of.add_argument("--out", default="pruned", metavar="DIR", help="where files are written (default: pruned)")
    of.add_argument("--overwrite", action="store_true", help="write over an earlier result in DIR")
    of.add_argument("--compact", action="store_true", help="write model_compact.pt too: bits and kept values")
    of.add_argument("--checkpoint", metavar="DIR", help="keep the run there after each stage")
    of.add_argument("--resume", action="store_true", help="go on with the run in --checkpoint")
    of.add_argument("--plan", action="store_true", help="print the plan and stop")
    of.set_defaults(command=command)
