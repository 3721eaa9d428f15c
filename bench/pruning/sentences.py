"""MiniLM tells which Wikipedia article a paragraph is from, after pruning on news, untrained since.

The loss is self-supervised: a random direction for each text, dotted with the text's embedding. The
covariance of its gradients is the Gauss-Newton matrix of the squared distance between the pruned
and the dense network's embeddings, so that nothing is learned of the classes, and a batch tells as
much as its texts one by one.
"""

from __future__ import annotations

import copy
import resource
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

import mfac
from bench.minilm import LAYERS, load_minilm, to_tokens
from bench.pruning.table import Table, reached
from demo.texts import load_news, load_paragraphs

METHODS: dict[str, dict[str, Any]] = {
    "default": {},
    "summed": {"compensation": "summed"},
    "magnitude": {"saliency": "magnitude", "compensation": "none"},
}
MARKS: dict[float | str, float] = {0.5: 84.0, 0.7: 82.0, "2:4": 84.0}
SETTINGS: dict[str, Any] = {
    "num_gradients": 128,
    "stages": 1,
    "recomputations": 2,
    "allocation": "uniform",
    "compensation": "greedy",  # "auto" goes by a loss, and a random projection is none
}
"""A tenth of the memory and time of the defaults: a block, 1.8 million weights, goes at once."""
LENGTH, BATCH = 64, 4


def loss_fn(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Mean over the texts of the embedding along a random direction of each."""
    tokens, directions = batch
    return (model(tokens) * directions).sum(1).mean()


def news_batches(tokenizer: Any, count: int) -> list[tuple[Tensor, Tensor]]:
    """Batches of pieces of news items with their random directions."""
    words = [item.split() for item in load_news()]
    texts = [" ".join(item[begin : begin + 45]) for item in words for begin in range(0, max(1, len(item) - 20), 45)]
    generator = torch.Generator().manual_seed(0)
    tokens = to_tokens(tokenizer, texts, LENGTH)
    batches = []
    for _ in range(count):
        rows = tokens[torch.randint(len(tokens), (BATCH,), generator=generator)]
        batches.append((rows, torch.randn(BATCH, 384, generator=generator)))
    return batches


class Articles:
    """Paragraphs to embed: paragraphs at even places make an article's mean, others look for it.

    Args:
        tokenizer: Of the network.
        most: Paragraphs of an article.
    """

    def __init__(self, tokenizer: Any, most: int = 12) -> None:
        pairs = load_paragraphs(most)
        self.labels = torch.tensor([number for number, _ in pairs])
        self.count = int(self.labels.max()) + 1
        self.tokens = to_tokens(tokenizer, [text for _, text in pairs], LENGTH)
        places = torch.cat([torch.arange(int((self.labels == k).sum())) for k in range(self.count)])
        self.reference = places % 2 == 0

    @torch.no_grad()
    def accuracy(self, model: nn.Module) -> float:
        """Share of paragraphs that are nearest to their own article's mean, in %."""
        found = torch.cat([model(part) for part in self.tokens.split(64)])
        means = torch.stack([found[self.reference & (self.labels == k)].mean(0) for k in range(self.count)])
        asked = found[~self.reference] @ nn.functional.normalize(means, dim=1).T
        return 100 * float((asked.argmax(1) == self.labels[~self.reference]).double().mean())


def prune_block_by_block(model: nn.Module, batches: list[Any], options: dict[str, Any]) -> dict[str, Tensor]:
    """Prunes the six blocks from the first to the last, each in a call of its own.

    Returns:
        All masks.
    """
    masks: dict[str, Tensor] = {}
    for block in range(LAYERS):
        params = [f"blocks.{block}.attention.*.weight", f"blocks.{block}.up.weight", f"blocks.{block}.down.weight"]
        masks |= mfac.prune(model, loss_fn, batches, params=params, **options).masks
    return masks


def table(sparsities: Sequence[float | str], methods: Sequence[str], settings: dict[str, Any]) -> None:
    """Prints the table.

    Args:
        sparsities: Lines; "2:4" among them is the pattern.
        methods: Of `METHODS`.
        settings: Of `mfac.prune`, besides the method's.
    """
    dense, tokenizer = load_minilm()
    articles = Articles(tokenizer)
    print(
        f"MiniLM, {articles.count} articles, {len(articles.labels)} paragraphs. Dense {articles.accuracy(dense):.2f} %"
    )
    lines = Table(["sparsity", "method", "accuracy [%]", "wanted", "time [s]", "resident [GiB]"], [0, 15, 0, 16, 0, 0])
    batches = news_batches(tokenizer, 1024)
    for sparsity in sparsities or MARKS:
        for method in methods or METHODS:
            model = copy.deepcopy(dense)
            what = {"pattern": sparsity} if isinstance(sparsity, str) else {"sparsity": sparsity}
            start = time.perf_counter()
            prune_block_by_block(model, batches, {**SETTINGS, **settings, **METHODS[method], **what})
            seconds = time.perf_counter() - start
            value = articles.accuracy(model)
            mark = reached(value, MARKS.get(sparsity) if method == "default" else None)
            resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
            lines.row(sparsity, method, f"{value:.2f}", mark, f"{seconds:.0f}", f"{resident:.1f}")
