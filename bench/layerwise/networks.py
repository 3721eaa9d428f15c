"""The digit CNN, MiniLM and SmolLM2, compressed layer by layer without any training."""

from __future__ import annotations

import copy
import math
import resource
import time
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

import mfac
from bench.language import calibration, evaluation, perplexities
from bench.minilm import load_minilm, to_tokens
from bench.pruning.digits import shuffled_batches
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
        pruned, before = copy.deepcopy(model), _resident()
        began = time.perf_counter()
        report = mfac.prune_layerwise(pruned, data, **arguments)
        seconds = time.perf_counter() - began
        found = perplexities(pruned, texts)
        rise = " ".join(f"{math.log(found[kind] / dense[kind]):.3f}" for kind in found)
        print(
            f"  {name:<14} news {found['news']:.2f}  wiki {found['wiki']:.2f}  rise of the log {rise}  "
            f"{seconds:.0f} s, {report.seconds_forward:.0f} of them passes, peak {_resident() - before:.0f} MiB  "
            f"{f'marks {marks[0]}/{marks[1]}' if marks else ''}",
            flush=True,
        )


def _indented(lines: Sequence[str]) -> str:
    return "\n".join(f"  {line}" for line in lines)


def _resident() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
