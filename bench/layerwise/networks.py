"""The digit CNN, MiniLM and SmolLM2, compressed layer by layer without any training."""

from __future__ import annotations

import copy
import math
import resource
import tempfile
import threading
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

import mfac
from bench.language import calibration, evaluation, perplexities
from bench.minilm import load_minilm, to_tokens
from bench.pruning.digits import loss_fn, shuffled_batches
from bench.pruning.sentences import LENGTH, Articles
from demo.digits import load_mnist
from demo.networks import accuracy, load_pretrained_digit_cnn
from demo.smollm import load_smollm
from demo.texts import load_news

LANGUAGE: dict[str, tuple[dict[str, Any], tuple[float, float] | None]] = {
    "sparsegpt": ({"method": "sparsegpt"}, (56, 43)),
    "alps": ({"method": "alps"}, (51, 39)),
    "2:4": ({"method": "sparsegpt", "pattern": "2:4"}, None),
    "4 bits": ({"method": "sparsegpt", "sparsity": 0.0, "quantize": mfac.Grid(4, 128)}, (35, 23.5)),
    "4 bits, weighed": (
        {"method": "sparsegpt", "sparsity": 0.0, "quantize": mfac.Grid(4, 128), "weigh_inputs": True},
        (35, 23.5),
    ),
    "50 % + 4 bits": ({"method": "sparsegpt", "quantize": mfac.Grid(4, 128)}, (52, 40)),
    "finish": ({"method": "sparsegpt", "finish": "fisher"}, (48, 36)),
    "alps, finish": ({"method": "alps", "finish": "fisher"}, (48, 36)),
    "2:4, finish": ({"method": "sparsegpt", "pattern": "2:4", "finish": "fisher"}, None),
    "50 % + 4 bits, finish": (
        {"method": "sparsegpt", "quantize": mfac.Grid(4, 128), "finish": "fisher", "weigh_inputs": True},
        (52, 40),
    ),
}
"""Name to arguments and the marks of news and wiki, which were set on texts of their own."""


def digits(methods: Sequence[str]) -> None:
    """Accuracy of the digit CNN on MNIST at 90 %, calibrated on training images without labels."""
    mnist = load_mnist()
    test = (mnist.test_images, mnist.test_labels)
    model = load_pretrained_digit_cnn()
    batches = [images for images, _ in shuffled_batches(mnist.train_images, mnist.train_labels, 256, 0)[:16]]
    print(f"  {mnist.source} Dense {accuracy(model, *test):.2f}")
    for method in methods or ("alps", "sparsegpt", "exact_obs"):
        pruned = copy.deepcopy(model)
        began = time.perf_counter()
        mfac.prune_layerwise(pruned, batches, sparsity=0.9, method=method)  # type: ignore[arg-type]
        print(f"  90 % {method:<10} {accuracy(pruned, *test):.2f}   {time.perf_counter() - began:.0f} s (99.0 wanted)")


def sentences(methods: Sequence[str]) -> None:
    """MiniLM tells articles apart, calibrated on news."""
    model, tokenizer = load_minilm()
    articles = Articles(tokenizer)
    pieces = [" ".join(item.split()[begin : begin + 45]) for item in load_news() for begin in (0, 45)]
    batches = token_batches(to_tokens(tokenizer, pieces, LENGTH), 512)
    print(f"  dense {articles.accuracy(model):.1f}")
    for method in methods or ("alps", "sparsegpt"):
        for what, mark in (({"sparsity": 0.5}, 84.5), ({"sparsity": 0.7}, 82.5), ({"pattern": "2:4"}, 84.0)):
            pruned = copy.deepcopy(model)
            began = time.perf_counter()
            arguments: dict[str, Any] = what
            mfac.prune_layerwise(pruned, batches, method=method, **arguments)  # type: ignore[arg-type]
            name = " ".join(map(str, what.values()))
            print(
                f"  {method:<10} {name:<4} {articles.accuracy(pruned):.1f}   {time.perf_counter() - began:.0f} s "
                f"({mark} wanted)"
            )


def budgets() -> None:
    """The digit CNN within shares of its operations, and of its size in 8 bits.

    Levels that `mfac.spdy_search` finds on 2000 training images stand beside those of the least
    sum of layer errors, and beside the same sparsity everywhere.
    """
    mnist = load_mnist()
    test = (mnist.test_images, mnist.test_labels)
    model = load_pretrained_digit_cnn()
    training = shuffled_batches(mnist.train_images, mnist.train_labels, 256, 0)
    batches, scored = [images for images, _ in training[:16]], training[16:24]
    print(f"  {mnist.source} Dense {accuracy(model, *test):.2f}")
    with tempfile.TemporaryDirectory() as folder:
        for unit, levels, shares in (("flops", None, (0.5, 0.25, 0.1)), ("bits", BIT_LEVELS, (0.5, 0.3, 0.2))):
            began = time.perf_counter()
            database = mfac.LayerDatabase.build(model, batches, levels, folder=f"{folder}/{unit}")
            print(f"  {unit}: database of {len(database.layers)} layers in {time.perf_counter() - began:.0f} s")
            costs = database.costs(unit, model=model, example=batches[0][:1])  # type: ignore[arg-type]
            whole = sum(max(of_layer.values()) for of_layer in costs.values())
            for share in shares:
                found = {}
                for errors in ("prior", "measured"):
                    pruned, began = copy.deepcopy(model), time.perf_counter()
                    arguments: dict[str, Any] = {"model": pruned, "errors": errors}
                    result = mfac.spdy_search(database, costs, share * whole, loss_fn, scored, **arguments)
                    seconds = time.perf_counter() - began
                    found[errors] = f"{accuracy(pruned, *test):.2f} ({result.evaluations} models, {seconds:.0f} s)"
                pruned = copy.deepcopy(model)
                same = _one_level(costs, share * whole)
                database.stitch(same, pruned)
                print(
                    f"  {share:.0%} of {unit}: searched {found['prior']}, least layer errors {found['measured']}, "
                    f"one level for all {accuracy(pruned, *test):.2f}"
                )


BIT_LEVELS: list[Any] = [
    "0 8bit",
    "0 4bit",
    "0 3bit",
    "0 2bit",
    "0.5 4bit",
    "0.7 4bit",
    "0.8 4bit",
    "0.9 4bit",
    "0.95 4bit",
]


def _one_level(costs: Any, budget: float) -> dict[str, Any]:
    """The dearest level that all layers can have within a budget."""
    first = next(iter(costs.values()))
    fits = {level: cost for level in first if (cost := sum(costs[name][level] for name in costs)) <= budget}
    level = max(fits, key=lambda key: fits[key])
    return dict.fromkeys(costs, level)


def token_batches(tokens: Tensor, most: int) -> list[Tensor]:
    """Sequences of equal length together, so that no batch has padding that H would see."""
    lengths = (tokens[:most] != 0).sum(1)
    return [tokens[:most][lengths == length][:, :length] for length in lengths.unique().tolist() if length > 4]


def language(methods: Sequence[str], share: int = 1, blocks: int | None = None) -> None:
    """Perplexity of SmolLM2-135M.

    Args:
        methods: Of `LANGUAGE`.
        share: Every so many sequences are evaluated.
        blocks: How many blocks are left of the model, for a try; None for all.
    """
    if unknown := set(methods) - set(LANGUAGE):
        raise SystemExit(f"--methods should be of {sorted(LANGUAGE)}. Found {sorted(unknown)}.")
    model, tokenizer = load_smollm()
    if blocks is not None:
        model.model.layers = nn.ModuleList(list(model.model.layers)[:blocks])
    texts = {kind: batches[::share] for kind, batches in evaluation(tokenizer).items()}
    data = calibration(tokenizer)
    dense = perplexities(model, texts)
    print(f"  {'dense':<14} news {dense['news']:.2f}  wiki {dense['wiki']:.2f}")
    print(_indented(str(mfac.plan_layerwise(model, data)).splitlines()[:4]))
    for name in methods or LANGUAGE:
        arguments, marks = LANGUAGE[name]
        pruned, began = copy.deepcopy(model), time.perf_counter()
        with watched_memory() as memory:
            report = mfac.prune_layerwise(pruned, data, **arguments)
        seconds = time.perf_counter() - began
        found = perplexities(pruned, texts)
        rise = " ".join(f"{math.log(found[kind] / dense[kind]):.3f}" for kind in found)
        print(
            f"  {name:<14} news {found['news']:.2f}  wiki {found['wiki']:.2f}  rise of the log {rise}  "
            f"{seconds:.0f} s, {report.seconds_forward:.0f} of them passes, "
            f"{memory.peak / 2**20:.0f} MiB more than before at the most  "
            f"{f'marks {marks[0]}/{marks[1]}' if marks else ''}",
            flush=True,
        )


def _indented(lines: Sequence[str]) -> str:
    return "\n".join(f"  {line}" for line in lines)


class Memory:
    """What a process holds beyond what it held when watching began, looked at ten times a second.

    The system's own high-water mark would count what came before.
    """

    def __init__(self) -> None:
        self.start, self.peak = resident_bytes(), 0
        self.done = threading.Event()

    def watch(self) -> None:
        """Looks until `done` is set."""
        while not self.done.wait(0.1):
            self.peak = max(self.peak, resident_bytes() - self.start)


@contextmanager
def watched_memory() -> Generator[Memory]:
    """Watches memory in a thread."""
    memory = Memory()
    thread = threading.Thread(target=memory.watch, daemon=True)
    thread.start()
    try:
        yield memory
    finally:
        memory.done.set()
        thread.join()


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
