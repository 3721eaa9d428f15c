"""Texts for a language model: what it is calibrated on and, disjoint from that, evaluated on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from demo.smollm import END_OF_TEXT
from demo.texts import load_news, load_paragraphs

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
