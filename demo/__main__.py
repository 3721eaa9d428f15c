"""The demo as a program: `python -m demo`."""

from __future__ import annotations

import argparse
import sys
import textwrap
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

import mfac
from demo.digits import Digits, load_mnist
from demo.fetch import FetchError
from demo.networks import PRETRAINED, ResNet8, accuracy, load_pretrained_digit_cnn
from demo.optimizers import BATCH_SIZE, OPTIMIZERS, compare
from demo.plots import plot_pruning, plot_training
from demo.pruning import METHODS, Result, prune_copies
from demo.training import History

OUT = Path(__file__).parent / "out"


@dataclass(frozen=True)
class Size:
    """How long the demo takes: to which sparsities is pruned, and how."""

    sparsities: tuple[float, ...]
    methods: tuple[str, ...]
    pruning: Mapping[str, int]  # arguments of mfac.prune; none are its defaults


QUICK = Size((0.9, 0.95), ("mfac", "magnitude"), {"num_gradients": 128, "stages": 4})
FULL = Size((0.8, 0.9, 0.95, 0.98), tuple(METHODS), {})
IMAGES, EPOCHS = 8000, 3  # of the training; the optimizers' settings were chosen for these


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m demo", description="Pruning and training with mfac.")
    parser.add_argument("--only", choices=("prune", "train"), help="run one of the two parts")
    parser.add_argument("--full", action="store_true", help="more sparsities and methods, default settings: minutes")
    arguments = parser.parse_args(argv)
    size = FULL if arguments.full else QUICK
    started = time.perf_counter()
    try:
        digits = load_mnist()
        print_field("data", digits.source)
        print_field("threads", f"{torch.get_num_threads()}, torch {torch.__version__}, mfac {mfac.__version__}")
        OUT.mkdir(exist_ok=True)
        if arguments.only != "train":
            show_pruning(digits, size)
        if arguments.only != "prune":
            show_training(digits)
    except FetchError as error:
        print(error, file=sys.stderr)
        return 1
    longer = "" if arguments.full else " `make demo FULL=1` prunes to more sparsities, with the default settings."
    print(f"\nDone in {time.perf_counter() - started:.0f} s.{longer}")
    return 0


def show_pruning(digits: Digits, size: Size) -> None:
    """Prune the pretrained network, print the table and draw the figure."""
    model = load_pretrained_digit_cnn()
    dense = accuracy(model, digits.test_images, digits.test_labels)
    weights = sum(parameter.numel() for parameter in model.parameters())
    heading("1. Pruning a pretrained network, no fine-tuning after")
    print_field("network", f"DigitCNN with the weights of {PRETRAINED}, {weights} parameters")
    print_field("dense", f"{dense:.2f} % of the test images right")
    print_field("pruning", f"one call of mfac.prune a line; {listed(size.pruning) or 'default settings'}")
    for method in size.methods:
        print_field(method, METHODS[method][0])
    print()
    print_row("sparsity [%]", "method", "test accuracy [%]", "time [s]")
    results = prune_copies(model, digits, size.sparsities, size.methods, size.pruning, print_result)
    curves = {
        method: [(result.sparsity, result.accuracy) for result in results if result.method == method]
        for method in size.methods
    }
    file = OUT / "pruning.png"
    plot_pruning(file, curves, dense, "Digit CNN pruned in one call, no fine-tuning")
    print(f"\nFigure: {file}")


def show_training(digits: Digits) -> None:
    """Train the small network with every optimizer, print the table and draw the figure."""
    part = digits.subset(IMAGES)
    images = len(part.train_labels)
    weights = sum(parameter.numel() for parameter in ResNet8().parameters())
    heading("2. Training a small residual network")
    print_field("network", f"ResNet8, {weights} parameters, from the same random weights")
    print_field("training", f"{images} images, {EPOCHS} epochs, batches of {BATCH_SIZE}, cosine schedule")
    for name, (kind, arguments) in OPTIMIZERS.items():
        print_field(name, f"{kind.__name__}, {listed(arguments)}")
    print()
    print_row("optimizer", "train loss", "test accuracy [%]", "time [s]")

    def print_history(name: str, history: History) -> None:
        loss, correct = history.train_losses[-1], history.test_accuracies[-1]
        print_row(name, f"{loss:.4f}", f"{correct:.2f}", f"{history.seconds:.1f}")

    histories = compare(part, EPOCHS, print_history)
    file = OUT / "training.png"
    plot_training(file, histories, f"ResNet8 on {images} digits")
    print(f"\nFigure: {file}")


def heading(text: str) -> None:
    print(f"\n{text}\n{'-' * len(text)}")


def listed(arguments: Mapping[str, float]) -> str:
    return ", ".join(f"{name}={value:g}" for name, value in arguments.items())


def print_field(name: str, text: str) -> None:
    print(textwrap.fill(text, width=100, initial_indent=f"{name:15}", subsequent_indent=" " * 15))


def print_result(result: Result) -> None:
    sparsity, seconds = f"{100 * result.sparsity:.1f}", f"{result.seconds:.1f}"
    print_row(sparsity, result.method, f"{result.accuracy:.2f}", seconds)


def print_row(first: str, second: str, third: str, fourth: str) -> None:
    print(f"{first:>12}  {second:>13}  {third:>17}  {fourth:>8}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
