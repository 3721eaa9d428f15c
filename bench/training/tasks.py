"""What is trained: an MLP, a residual network, a small transformer, a sentence encoder."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from bench.fashion import load_fashion_mnist
from bench.minilm import load_minilm, to_tokens
from demo.fetch import fetch, package
from demo.texts import load_paragraphs
from mfac.bench.network import ResNet20

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Data:
    """Inputs and labels, for training and for testing."""

    train: Batch
    test: Batch


@dataclass(frozen=True)
class Task:
    """A network, its data, and how long it trains.

    Attributes:
        data: Loads it, the same every time.
        model: Makes the network, from torch's current seed.
        batch_size: Examples a step.
        epochs: Passes through the training data.
        higher: Whether the measure is an accuracy in %; otherwise it is a loss.
        note: What it is, for the table.
    """

    data: Callable[[], Data]
    model: Callable[[], nn.Module]
    batch_size: int
    epochs: int
    higher: bool
    note: str

    def steps(self) -> int:
        """How many there are."""
        return self.epochs * (len(self.data().train[0]) // self.batch_size)

    def batches(self, seed: int) -> Iterator[Batch]:
        """In an order that depends on the seed alone; batches that are not full are left out."""
        inputs, labels = self.data().train
        generator = torch.Generator().manual_seed(seed)
        for _ in range(self.epochs):
            order = torch.randperm(len(inputs), generator=generator)
            for rows in order.split(self.batch_size):
                if len(rows) == self.batch_size:
                    yield inputs[rows], labels[rows]

    @torch.no_grad()
    def measure(self, model: nn.Module) -> float:
        """Accuracy in % or mean loss on the test data."""
        model.eval()
        inputs, labels = self.data().test
        total, count = 0.0, 0
        for x, y in zip(inputs.split(200), labels.split(200), strict=True):
            logits = model(x)
            if self.higher:
                total += float((logits.argmax(-1) == y).sum())
            else:
                total += float(functional.cross_entropy(logits.flatten(0, -2), y.flatten(), reduction="sum"))
            count += y.numel()
        model.train()
        return (100 if self.higher else 1) * total / count


def loss_fn(model: nn.Module, batch: Batch) -> Tensor:
    """Mean cross entropy."""
    logits = model(batch[0])
    return functional.cross_entropy(logits.flatten(0, -2), batch[1].flatten())


@cache
def _digits() -> Data:
    """scikit-learn's 1797 digits of 8 x 8 pixels; 360 by chance are held out."""
    with gzip.open(fetch(package("small_digits")) / "digits.csv.gz") as file:
        table = torch.from_numpy(np.loadtxt(file, delimiter=","))
    table = table[torch.randperm(len(table), generator=torch.Generator().manual_seed(0))]
    inputs, labels = table[:, :-1].float() / 16, table[:, -1].long()
    return Data((inputs[:1437], labels[:1437]), (inputs[1437:], labels[1437:]))


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


@cache
def _fashion() -> Data:
    """At half the resolution: a quarter of the time."""
    digits = load_fashion_mnist().subset(6000)
    train, test = (functional.avg_pool2d(x, 2) for x in (digits.train_images, digits.test_images[:3000]))
    return Data((train, digits.train_labels), (test, digits.test_labels[:3000]))


_LETTERS = " \netaoinsrhldcumfpgwybvk,.'0123456789-()ETAOINSRHLDCUMFPGWYBVKxjqz:;\"!?/"
CONTEXT = 64


@cache
def _characters() -> Data:
    """400 000 characters of Wikipedia paragraphs in pieces of 64; the last tenth is held out."""
    text = "\n".join(paragraph for _, paragraph in load_paragraphs(most=40))[:400_000]
    known = {letter: i + 1 for i, letter in enumerate(_LETTERS)}
    numbers = torch.tensor([known.get(letter, 0) for letter in text])
    pieces = numbers[: len(numbers) // (CONTEXT + 1) * (CONTEXT + 1)].view(-1, CONTEXT + 1)
    cut = len(pieces) * 9 // 10
    return Data((pieces[:cut, :-1], pieces[:cut, 1:]), (pieces[cut:, :-1], pieces[cut:, 1:]))


class CharacterTransformer(nn.Module):
    """Two causal blocks of width 64 with four heads."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.letters = nn.Embedding(len(_LETTERS) + 1, width)
        self.places = nn.Embedding(CONTEXT, width)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 4, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
            for _ in range(2)
        )
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, len(_LETTERS) + 1)

    def forward(self, letters: Tensor) -> Tensor:
        """Letters [n, t] to logits [n, t, letters]."""
        length = letters.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length)
        x = self.letters(letters) + self.places.weight[:length]
        for block in self.blocks:
            x = block(x, src_mask=mask, is_causal=True)
        return self.head(self.norm(x))


@cache
def _paragraphs() -> Data:
    """Paragraphs of articles, 32 tokens each; every fourth paragraph of an article is held out."""
    pairs = load_paragraphs(most=16)
    _, tokenizer = load_minilm()
    tokens = to_tokens(tokenizer, [text for _, text in pairs], 32)
    labels = torch.tensor([number for number, _ in pairs])
    held_out = torch.arange(len(pairs)) % 4 == 3
    return Data((tokens[~held_out], labels[~held_out]), (tokens[held_out], labels[held_out]))


class ParagraphClassifier(nn.Module):
    """MiniLM with a linear head; its word embeddings are frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, _ = load_minilm()
        self.encoder.words.requires_grad_(False)
        self.head = nn.Linear(384, int(_paragraphs().train[1].max()) + 1)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens [n, t] to logits [n, articles]."""
        return self.head(20 * self.encoder(tokens))


TASKS = {
    "digits": Task(_digits, _mlp, 32, 6, True, "scikit-learn's digits, MLP 64-64-32-10, batch 32, 6 epochs"),
    "fashion": Task(
        _fashion, ResNet20, 64, 3, True, "Fashion-MNIST, 6000 images of 14 x 14 pixels, ResNet-20, batch 64, 3 epochs"
    ),
    "characters": Task(
        _characters, CharacterTransformer, 32, 3, False, "Wikipedia's characters, transformer, batch 32, 3 epochs"
    ),
    "paragraphs": Task(
        _paragraphs, ParagraphClassifier, 16, 1, True, "Wikipedia paragraph to article, MiniLM, batch 16, 1 epoch"
    ),
}
