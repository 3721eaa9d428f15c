"""2:4 on a transformer, then fine-tuning towards the dense embeddings, with the zeros kept."""

from __future__ import annotations

import copy

import torch

import mfac
from bench.minilm import load_minilm
from bench.pruning.sentences import Articles, news_batches, prune_block_by_block

STEPS = 60


def main() -> None:
    dense, tokenizer = load_minilm()
    articles = Articles(tokenizer, most=6)
    print(f"dense: {articles.accuracy(dense):.1f} % of Wikipedia's paragraphs find their article")
    model = copy.deepcopy(dense)
    options = {"pattern": "2:4", "num_gradients": 32, "stages": 1, "recomputations": 1}
    options["compensation"] = "greedy"  # "auto" goes by a loss, and a random projection is none
    masks = prune_block_by_block(model, news_batches(tokenizer, 192), options)
    print(f"2:4: {articles.accuracy(model):.1f} %")

    optimizer = torch.optim.AdamW([model.get_parameter(name) for name in masks], lr=1e-5, weight_decay=0.0)
    handle = mfac.Masks(masks).attach(model, optimizer)  # zeros and their momentum stay zero from here on
    for tokens, _ in news_batches(tokenizer, STEPS):
        with torch.no_grad():
            wanted = dense(tokens)
        optimizer.zero_grad()
        (model(tokens) - wanted).square().sum(1).mean().backward()
        optimizer.step()
    handle.remove()
    zeros = mfac.Masks.from_zeros(model, list(masks)).sparsity
    print(f"fine-tuned on news: {articles.accuracy(model):.1f} %, {zeros:.1%} zero still")


if __name__ == "__main__":
    main()
