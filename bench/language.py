"""Texts for a language model: what it is calibrated on and, disjoint from that, evaluated on.

Run as a program, it prints the model's perplexity dense and after magnitude pruning:
`python -m bench.language`.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

import mfac
from bench.texts import load_news, load_paragraphs
from demo.smollm import END_OF_TEXT, SmolLM, load_smollm

NEWS = 150  # items to calibrate on; the others are evaluated on
EVALUATED, LENGTH = 40, 512  # sequences of each kind of text, tokens of a sequence
BATCH = 4  # calibration sequences
_TOGETHER = 4  # paragraphs that make a document, about as long as a news item
_PER_ARTICLE = 16  # paragraphs to calibrate on
_SEED = 0


def calibration(tokenizer: Any, sequences: int = 128, length: int = 256) -> list[Tensor]:
    """Batches [4, length] int64 of news and Wikipedia, the last one perhaps smaller.

    The first 150 news items and pieces of the first half of the articles take turns, each in a
    random order that never changes, with the end-of-text token after each.

    Args:
        tokenizer: The model's.
        sequences: How many in all.
        length: Tokens of each.

    Raises:
        ValueError: If there is not as much text.
    """
    generator = torch.Generator().manual_seed(_SEED)
    articles = [piece for article in _articles(_PER_ARTICLE)[0] for piece in _pieces(article)]
    kinds = (
        [texts[i] for i in torch.randperm(len(texts), generator=generator)] for texts in (load_news()[:NEWS], articles)
    )
    mixed = chain.from_iterable(zip(*kinds, strict=False))
    return list(_packed(tokenizer, mixed, sequences, length).split(BATCH))


def evaluation(tokenizer: Any) -> dict[str, list[Tensor]]:
    """40 sequences [1, 512] int64 of each of two kinds of text.

    "news" is of the last 150 news items, "wiki" of the first paragraphs of each article of the last
    half, in their order, with the end-of-text token after each item and each article.

    Args:
        tokenizer: The model's.
    """
    texts = {
        "news": load_news()[NEWS:],
        "wiki": ["\n".join(paragraphs) for paragraphs in _articles(_TOGETHER)[1]],
    }
    return {kind: list(_packed(tokenizer, each, EVALUATED, LENGTH).split(1)) for kind, each in texts.items()}


def prune_magnitude_(layers: nn.Module, sparsity: float = 0.5) -> None:
    """Sets the smallest weights of each Linear to zero, the share `sparsity` of each."""
    with torch.no_grad():
        for layer in layers.modules():
            if isinstance(layer, nn.Linear):
                magnitudes = layer.weight.abs()
                count = int(sparsity * magnitudes.numel())
                if count:
                    layer.weight[magnitudes <= magnitudes.flatten().kthvalue(count).values] = 0


def perplexities(model: nn.Module, texts: dict[str, list[Tensor]]) -> dict[str, float]:
    return {kind: mfac.evaluate_perplexity(model, batches) for kind, batches in texts.items()}


def _articles(most: int) -> tuple[list[list[str]], list[list[str]]]:
    """The first paragraphs of each article, of the first half of the articles and of the last."""
    articles: dict[int, list[str]] = {}
    for number, paragraph in load_paragraphs(most):
        articles.setdefault(number, []).append(paragraph)
    listed = list(articles.values())
    return listed[: len(listed) // 2], listed[len(listed) // 2 :]


def _pieces(paragraphs: list[str]) -> Iterator[str]:
    for begin in range(0, len(paragraphs), _TOGETHER):
        yield "\n".join(paragraphs[begin : begin + _TOGETHER])


def _packed(tokenizer: Any, texts: Iterable[str], sequences: int, length: int) -> Tensor:
    """[sequences, length]: the texts' tokens one after the other, cut where a sequence is full."""
    end, tokens, wanted = tokenizer.token_to_id(END_OF_TEXT), [], sequences * length
    for text in texts:
        tokens += [*tokenizer.encode(text).ids, end]
        if len(tokens) >= wanted:
            return torch.tensor(tokens[:wanted]).view(sequences, length)
    raise ValueError(
        f"Parameters `sequences` and `length` should ask for at most {len(tokens)} tokens. Found {wanted}."
    )


def main() -> None:
    torch.set_num_threads(2)
    model, tokenizer = load_smollm()
    texts, calibrating = evaluation(tokenizer), calibration(tokenizer)
    begin = time.perf_counter()
    with torch.no_grad():
        for batch in calibrating:
            model.model(batch)
    print(f"{sum(map(len, calibrating))} calibration sequences: {time.perf_counter() - begin:.1f} s without the head")
    pruned: SmolLM = copy.deepcopy(model)
    prune_magnitude_(pruned.model.layers)
    for name, each in (("dense", model), ("magnitude, 50 %", pruned)):
        begin = time.perf_counter()
        found = perplexities(each, texts)
        print(f"{name}: {found['news']:.2f} news, {found['wiki']:.2f} wiki, {time.perf_counter() - begin:.0f} s")


if __name__ == "__main__":
    main()
