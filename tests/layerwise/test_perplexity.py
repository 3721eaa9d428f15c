"""Perplexity against a dense float64 sum, for every make of batch and output, and its refusals."""

from __future__ import annotations

import math
from collections import UserDict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mfac
from mfac.layerwise import perplexity

WORDS = 23


class Bigram(nn.Module):
    """A language model that looks at one token, and wraps its logits as a test wants them."""

    def __init__(self, wrap: Any = None, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.drop = nn.Embedding(WORDS, WORDS, dtype=dtype), nn.Dropout(0.5)
        self.wrap = wrap or (lambda logits: logits)
        self.calls: list[set[str]] = []

    def forward(self, input_ids: Tensor, **others: Any) -> Any:
        assert not torch.is_grad_enabled()
        self.calls.append(set(others))
        return self.wrap(self.drop(self.table(input_ids)))


def tokens(n: int, t: int, seed: int = 1) -> Tensor:
    return torch.randint(WORDS, (n, t), generator=torch.Generator().manual_seed(seed))


def likelihoods(model: Bigram, ids: Tensor) -> Tensor:
    """Negative log likelihood of the second to the last token, [n, t - 1] float64."""
    logits = model.table.weight.detach().double()[ids[:, :-1]]
    return torch.logsumexp(logits, -1) - logits.gather(-1, ids[:, 1:, None])[..., 0]


def expected(model: Bigram, *pairs: tuple[Tensor, Tensor | None]) -> float:
    """Of ids and which of their second to last tokens count."""
    found = torch.cat(
        [
            values.flatten() if counted is None else values[counted]
            for values, counted in ((likelihoods(model, ids), counted) for ids, counted in pairs)
        ]
    )
    return math.exp(float(found.mean()))


def close(found: float, wanted: float) -> bool:
    # The log-softmax of a float32 row of 23 is good to about 1e-6, and the mean's exponential
    # carries over that.
    return found == pytest.approx(wanted, rel=1e-5)


def test_every_token_weighs_the_same_whatever_the_batches():
    model, ids = Bigram(), [tokens(3, 7), tokens(1, 2, seed=2), tokens(2, 11, seed=3)]
    assert close(mfac.evaluate_perplexity(model, ids), expected(model, *((each, None) for each in ids)))
    assert close(mfac.evaluate_perplexity(model, iter(ids)), mfac.evaluate_perplexity(model, ids[::-1]))


def test_equally_likely_tokens_have_the_vocabulary_as_their_perplexity():
    model = Bigram(wrap=torch.zeros_like)
    assert close(mfac.evaluate_perplexity(model, [tokens(2, 5)]), WORDS)


def test_an_excluded_token_makes_it_infinite():
    model = Bigram(wrap=lambda logits: logits.index_fill(-1, tokens(1, 3)[0, 1:2], -torch.inf))
    assert mfac.evaluate_perplexity(model, [tokens(1, 3)]) == math.inf


def test_a_huge_likelihood_is_inf_and_raises_nothing():
    model = Bigram(wrap=lambda logits: torch.zeros_like(logits).index_fill(-1, torch.tensor([4]), 1e4))
    assert mfac.evaluate_perplexity(model, [torch.zeros(1, 3, dtype=torch.int64)]) == math.inf


@pytest.mark.parametrize("kept", [1, 2, 5])
def test_chunks_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch, kept: int):
    model, ids = Bigram(), tokens(3, 6)
    whole = mfac.evaluate_perplexity(model, [ids])
    monkeypatch.setattr(perplexity, "_ENTRIES", kept * WORDS)
    sizes: list[int] = []
    cross_entropy = nn.functional.cross_entropy

    def watched(part: Tensor, *others: Any, **options: Any) -> Tensor:
        sizes.append(len(part))
        return cross_entropy(part, *others, **options)

    monkeypatch.setattr(nn.functional, "cross_entropy", watched)
    assert mfac.evaluate_perplexity(model, [ids]) == pytest.approx(whole, rel=1e-6)
    assert max(sizes) == kept
    assert sum(sizes) == 15


@pytest.mark.parametrize(
    "wrap",
    [
        lambda logits: (logits, "cache"),
        lambda logits: [logits],
        lambda logits: {"loss": None, "logits": logits},
        lambda logits: UserDict(logits=logits),
        lambda logits: SimpleNamespace(logits=logits),
    ],
)
def test_logits_are_found_in_what_a_model_returns(wrap: Any):
    ids = [tokens(2, 5)]
    assert mfac.evaluate_perplexity(Bigram(wrap), ids) == mfac.evaluate_perplexity(Bigram(), ids)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda ids: {"input_ids": ids},
        lambda ids: UserDict(input_ids=ids),
        lambda ids: (ids,),
        lambda ids: (ids, ids.clone()),
        lambda ids: [ids],
        lambda ids: ids.int(),
    ],
)
def test_every_make_of_batch_is_the_same(wrap: Any):
    ids = tokens(2, 5)
    assert mfac.evaluate_perplexity(Bigram(), [wrap(ids)]) == mfac.evaluate_perplexity(Bigram(), [ids])


def test_labels_of_minus_100_do_not_count():
    model, ids = Bigram(), tokens(3, 8)
    labels = ids.clone()
    labels[0, :4] = labels[2] = -100
    wanted = expected(model, (ids, labels[:, 1:] != -100))
    assert close(mfac.evaluate_perplexity(model, [{"input_ids": ids, "labels": labels}]), wanted)
    assert close(mfac.evaluate_perplexity(model, [(ids, labels)]), wanted)
    assert model.calls == [set(), set()]


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float32])
def test_padding_does_not_count_on_either_side(dtype: torch.dtype):
    model, ids, mask = Bigram(), tokens(3, 8), torch.ones(3, 8, dtype=dtype)
    mask[0, :3] = mask[1, 6:] = 0  # the fourth token of the first is predicted from padding
    counted = torch.ones(3, 7, dtype=torch.bool)
    counted[0, :3] = counted[1, 5:] = False
    found = mfac.evaluate_perplexity(model, [{"input_ids": ids, "attention_mask": mask}])
    assert close(found, expected(model, (ids, counted)))
    assert model.calls == [{"attention_mask"}]


def test_the_first_token_of_each_packed_sequence_does_not_count():
    model, ids = Bigram(), tokens(1, 6)
    mask = torch.tensor([[1, 1, 2, 2, 2, 0]])
    counted = torch.tensor([[True, False, True, True, False]])
    found = mfac.evaluate_perplexity(model, [{"input_ids": ids, "attention_mask": mask}])
    assert close(found, expected(model, (ids, counted)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes(dtype: torch.dtype):
    model, ids = Bigram(dtype=dtype), tokens(2, 9)
    # The oracle reads the same rounded table, so that half precision costs nothing more.
    assert close(mfac.evaluate_perplexity(model, [ids]), expected(model, (ids, None)))


def test_modes_and_gradients_are_put_back():
    model = Bigram()
    model.drop.eval()
    mfac.evaluate_perplexity(model, [tokens(2, 5)])
    assert model.training and model.table.training and not model.drop.training and torch.is_grad_enabled()
    model.wrap = lambda logits: logits[0]
    with pytest.raises(ValueError, match="shape"):
        mfac.evaluate_perplexity(model.train(), [tokens(2, 5)])
    assert model.training and model.drop.training and torch.is_grad_enabled()


def test_a_loss_of_ones_own_weighs_by_tokens():
    model, ids = Bigram(), [tokens(3, 7), tokens(1, 2, seed=2)]

    def loss_fn(model: nn.Module, batch: Any) -> Tensor:
        logits = model(batch["input_ids"])[:, :-1]
        return nn.functional.cross_entropy(logits.flatten(0, 1), batch["input_ids"][:, 1:].flatten())

    found = mfac.evaluate_perplexity(model, [{"input_ids": each} for each in ids], loss_fn)
    assert close(found, expected(model, *((each, None) for each in ids)))


def test_a_batch_without_tokens_to_predict_is_passed_over():
    model, ids = Bigram(), tokens(2, 5)
    assert mfac.evaluate_perplexity(model, [tokens(4, 1), ids]) == mfac.evaluate_perplexity(model, [ids])
    assert len(model.calls) == 2


IDS = torch.zeros(2, 3, dtype=torch.int64)
SHIFTED = torch.tensor([[1, 2, 3, 4]])


@pytest.mark.parametrize(
    ("batches", "error", "message"),
    [
        ([], ValueError, "at least one batch. Found none"),
        (IDS, TypeError, "iterable of batches. Found Tensor"),
        ({"input_ids": IDS}, TypeError, "iterable of batches. Found dict"),
        (3, TypeError, "iterable of batches. Found int"),
        ([IDS[:, :1], IDS[:0]], ValueError, "tokens to predict.* in 2 batches"),
        ([(IDS, torch.full_like(IDS, -100))], ValueError, "tokens to predict"),
        ([IDS, IDS[0]], ValueError, r"shape \[n, t\]. Found shape \[3\] in batch 1"),
        ([IDS.float()], TypeError, "integer token ids. Found torch.float32 in batch 0"),
        (["text"], TypeError, "Found str in batch 0"),
        ([{"inputs": IDS}], TypeError, r"Found keys \['inputs'\] in batch 0"),
        ([(IDS, IDS, IDS)], TypeError, "Found tuple in batch 0"),
        ([{"input_ids": IDS, "labels": [1]}], TypeError, "`labels` as a tensor. Found list"),
        ([{"input_ids": IDS, "labels": IDS[:, 1:]}], ValueError, r"`labels` of the ids' shape \[2, 3\].*\[2, 2\]"),
        ([{"input_ids": IDS, "attention_mask": IDS[:1]}], ValueError, r"`attention_mask` of the ids' shape"),
        ([(SHIFTED, SHIFTED + 1)], ValueError, "at their own places, not shifted, or -100. Found others in batch 0"),
        ([IDS, IDS + WORDS - 1, IDS - 1], ValueError, r"ids of 0 to 22.*Found -1 to -1 in batch 2"),
    ],
)
def test_batches_that_are_refused(batches: Any, error: type[Exception], message: str):
    model = Bigram(wrap=lambda logits: logits)
    model.table.forward = lambda ids: torch.zeros(*ids.shape, WORDS)  # whatever the ids
    with pytest.raises(error, match=message):
        mfac.evaluate_perplexity(model, batches)


@pytest.mark.parametrize(
    ("wrap", "error", "message"),
    [
        (lambda logits: logits[:, 1:], ValueError, r"shape \[2, 3, vocab\]. Found shape \[2, 2, 23\] in batch 0"),
        (lambda logits: logits[..., 0], ValueError, r"Found shape \[2, 3\] in batch 0"),
        (lambda logits: logits.argmax(-1), TypeError, "floating-point logits. Found torch.int64"),
        (lambda logits: {"loss": logits}, TypeError, "logits. Found NoneType"),
        (lambda logits: (), TypeError, "logits. Found NoneType"),
        (lambda logits: "text", TypeError, "logits. Found str"),
    ],
)
def test_outputs_that_are_refused(wrap: Any, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        mfac.evaluate_perplexity(Bigram(wrap), [IDS])


def test_nan_is_named_by_its_batch():
    model = Bigram()
    with torch.no_grad():
        model.table.weight[5] = torch.nan
    with pytest.raises(ValueError, match="Found NaN in batch 1"):
        mfac.evaluate_perplexity(model, [IDS, IDS + 5, IDS])


@pytest.mark.parametrize(
    ("loss", "error", "message"),
    [
        (torch.zeros(2), ValueError, r"scalar. Found shape \[2\]"),
        ("text", TypeError, "scalar tensor. Found str"),
        (torch.tensor(torch.nan), ValueError, "NaN in batch 0"),
    ],
)
def test_losses_that_are_refused(loss: Any, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        mfac.evaluate_perplexity(Bigram(), [IDS], lambda model, batch: loss)
