"""A language model compressed layer by layer, as a program: `python -m demo.language`.

SmolLM2-135M is compressed anew for each row of the table, and its perplexity on news and on
Wikipedia is taken each time. Nothing is trained, and the texts it is evaluated on are others than
those it is calibrated on. "sparsegpt" rows take most of their time for running the blocks on the
calibration data. Half of the sequences are evaluated. `--full` evaluates all, and adds "alps" and a
finish along the loss, which take several times as long. `--quick` evaluates a fifth, and leaves out
the 2:4 pattern. `--blocks 2` is a try with the first two blocks, which predict nothing.
"""

from __future__ import annotations

import argparse
import copy
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

import mfac
from demo.__main__ import OUT, heading, print_field
from demo.fetch import FetchError
from demo.plots import plot_language
from demo.sequences import calibration, evaluation
from demo.smollm import LAYERS, PACKAGE, SmolLM, load_smollm

SHARE = 0.5  # of zeros, where a row has any
EVERY = {"quick": 5, "plain": 2, "full": 1}  # every so many sequences are evaluated


@dataclass(frozen=True)
class Way:
    """A row of the table: what is done to the model.

    Attributes:
        name: As it is printed.
        arguments: Of `mfac.prune_layerwise`; none for a row that takes no calibration.
        magnitude: Whether the smallest weights are set to zero instead.
        length: The shortest run that has the row: "quick", "plain" or "full".
    """

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    magnitude: bool = False
    length: Literal["quick", "plain", "full"] = "quick"


WAYS = (
    Way("dense"),
    Way("magnitude, 50 %", magnitude=True),
    Way("sparsegpt, 50 %", {"sparsity": SHARE, "method": "sparsegpt"}),
    Way("4 bits", {"sparsity": 0.0, "method": "sparsegpt", "quantize": mfac.Grid(bits=4), "weigh_inputs": True}),
    Way("50 % and 4 bits", {"sparsity": SHARE, "method": "sparsegpt", "quantize": mfac.Grid(bits=4)}),
    Way("2:4", {"pattern": "2:4", "method": "sparsegpt"}, length="plain"),
    Way("alps, 50 %", {"sparsity": SHARE, "method": "alps"}, length="full"),
    Way("finish, 50 %", {"sparsity": SHARE, "method": "sparsegpt", "finish": "fisher"}, length="full"),
)


@dataclass(frozen=True)
class Compressed:
    """A row as it came out.

    Attributes:
        name: Of its way.
        perplexities: By kind of text.
        seconds: Wall time of compressing, without evaluating.
        nbytes: Of the file that holds the model.
    """

    name: str
    perplexities: Mapping[str, float]
    seconds: float
    nbytes: int


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m demo.language", description="A language model, layer by layer.")
    either = parser.add_mutually_exclusive_group()
    either.add_argument("--quick", action="store_true", help="without 2:4; a fifth of the evaluation")
    either.add_argument("--full", action="store_true", help="with alps, a finish, and all of the evaluation")
    parser.add_argument("--blocks", type=int, default=LAYERS, help="only the first so many blocks of the model: a try")
    parser.add_argument("--sequences", type=int, default=128, help="to calibrate on, of 256 tokens each")
    arguments = parser.parse_args(argv)
    started = time.perf_counter()
    try:
        model, tokenizer = load_smollm()
        calibrating, texts = calibration(tokenizer, arguments.sequences), evaluation(tokenizer)
    except (FetchError, ModuleNotFoundError) as error:
        print(error, file=sys.stderr)
        return 1
    model.model.layers = model.model.layers[: arguments.blocks]
    length = "quick" if arguments.quick else "full" if arguments.full else "plain"
    lengths = list(EVERY)[: list(EVERY).index(length) + 1]
    ways = [way for way in WAYS if way.length in lengths]
    texts = {kind: batches[:: EVERY[length]] for kind, batches in texts.items()}
    describe(model, calibrating, texts)
    results = [compress(model, way, calibrating, texts) for way in ways]
    heading("The table")
    print_row("", *texts, "time [s]", "file [MB]")
    for result in results:
        print_result(result)
    OUT.mkdir(exist_ok=True)
    file = OUT / "language.png"
    rows = [(result.name, result.perplexities, result.nbytes / 1e6) for result in results]
    plot_language(file, rows, "SmolLM2-135M, compressed without training")
    print(f"\nFigure: {file}\n\nDone in {time.perf_counter() - started:.0f} s.")
    return 0


def describe(model: SmolLM, calibrating: Sequence[Tensor], texts: Mapping[str, Sequence[Tensor]]) -> None:
    weights = sum(parameter.numel() for parameter in model.model.layers.parameters())
    blocks = len(model.model.layers)
    print_field("model", f"SmolLM2-135M-Instruct, {blocks} blocks with {weights} parameters, of {PACKAGE}")
    sequences, length = sum(map(len, calibrating)), calibrating[0].shape[1]
    print_field("calibration", f"{sequences} sequences of {length} tokens, news and Wikipedia in turn")
    counted = ", ".join(f"{len(batches)} of {kind}" for kind, batches in texts.items())
    print_field("evaluation", f"sequences of {next(iter(texts.values()))[0].shape[1]} tokens: {counted}")
    print_field("file", "what is neither dropped nor rounded, as the embedding, is stored as float32")
    print_field("threads", f"{torch.get_num_threads()}, torch {torch.__version__}, mfac {mfac.__version__}")


def compress(
    dense: SmolLM, way: Way, calibrating: Sequence[Tensor], texts: Mapping[str, Sequence[Tensor]]
) -> Compressed:
    """One row: a copy of the model is compressed, written and evaluated."""
    heading(way.name)
    model = copy.deepcopy(dense)
    started = time.perf_counter()
    report, masks = None, mfac.Masks({})
    if way.arguments:
        report = mfac.prune_layerwise(model, calibrating, progress=by_block(started), **way.arguments)
        masks = mfac.Masks(report.masks)
    elif way.magnitude:
        masks = magnitude_masks(model)
        masks.apply_(model)
    seconds = time.perf_counter() - started
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.pt"
        if report is not None and "quantize" in way.arguments:
            nbytes = mfac.save_quantized(file, model, report)
        else:
            nbytes = mfac.save_compact(model, masks, file)
    perplexities = {kind: mfac.evaluate_perplexity(model, batches) for kind, batches in texts.items()}
    result = Compressed(way.name, perplexities, seconds, nbytes)
    print_row("", *texts, "time [s]", "file [MB]")
    print_result(result)
    return result


def magnitude_masks(model: SmolLM) -> mfac.Masks:
    """The largest half of each weight matrix of the blocks."""
    masks = {}
    for name, parameter in model.named_parameters():
        if name.startswith("model.layers.") and parameter.dim() == 2:
            magnitudes = parameter.detach().abs()
            masks[name] = magnitudes > magnitudes.flatten().kthvalue(int(SHARE * magnitudes.numel())).values
    return mfac.Masks(masks)


def by_block(started: float) -> Callable[[str, int, int], None]:
    """What prints a line whenever a block is solved."""

    def show(name: str, done: int, total: int) -> None:
        block = ".".join(name.split(".")[:3])
        print(f"  {block}: {done} of {total} weights, {time.perf_counter() - started:.0f} s", flush=True)

    return show


def print_result(result: Compressed) -> None:
    values = [f"{value:.2f}" for value in result.perplexities.values()]
    print_row(result.name, *values, f"{result.seconds:.0f}", f"{result.nbytes / 1e6:.1f}")


def print_row(first: str, *others: str) -> None:
    print(f"{first:17}" + "".join(f"  {text:>12}" for text in others), flush=True)


if __name__ == "__main__":
    sys.exit(main())
