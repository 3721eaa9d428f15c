"""MiniLM learns which Wikipedia article a paragraph is from: its last two blocks and a new head."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

import mfac
from bench.minilm import load_minilm, to_tokens
from demo.texts import load_paragraphs


def main() -> None:
    encoder, tokenizer = load_minilm()
    pairs = load_paragraphs(most=16)
    tokens = to_tokens(tokenizer, [text for _, text in pairs], 32)
    labels = torch.tensor([article for article, _ in pairs])
    held_out = torch.arange(len(pairs)) % 4 == 3
    torch.manual_seed(0)
    head = nn.Linear(384, int(labels.max()) + 1)
    encoder.requires_grad_(False)
    encoder.blocks[-2:].requires_grad_(True)
    parameters = [*encoder.parameters(), *head.parameters()]  # frozen ones take no memory
    opt = mfac.MFAC(parameters, lr=1e-3, rank=32, window_dtype=torch.bfloat16)
    print(f"{opt.window.dim} weights train; the window takes {opt.window.nbytes / 2**20:.0f} MiB")
    train = (~held_out).nonzero()[:, 0]
    for rows in train[torch.randperm(len(train))].split(16):
        loss = functional.cross_entropy(head(20 * encoder(tokens[rows])), labels[rows])
        opt.zero_grad()
        loss.backward()
        opt.step()
    with torch.no_grad():
        found = torch.cat([head(20 * encoder(part)).argmax(1) for part in tokens[held_out].split(50)])
    print(f"{100 * float((found == labels[held_out]).double().mean()):.1f} % of {int(held_out.sum())} paragraphs")


if __name__ == "__main__":
    main()
