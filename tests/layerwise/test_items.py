"""Tuples of inputs, masks and labels: a model gets inputs, and one rule serves every function."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mfac
from mfac.layerwise.items import AmbiguousItemError, taken

IDS = torch.arange(12).reshape(2, 6) % 7
LABELS = IDS.masked_fill(IDS == 3, -100)
SHIFTED = torch.cat([IDS[:, 1:], torch.full((2, 1), -100)], 1)
ONES, CLASSES, X = torch.ones_like(IDS), torch.tensor([0, 1]), torch.randn(2, 3)


class Causal(nn.Module):
    """Called as models of transformers are."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.layer, self.head = nn.Embedding(7, 8), nn.Linear(8, 8), nn.Linear(8, 7)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> Any:
        x = self.embed(input_ids)
        if attention_mask is not None:
            x = x * attention_mask[..., None]
        assert position_ids is None
        return SimpleNamespace(logits=self.head(torch.tanh(self.layer(x))))


class Two(nn.Module):
    def forward(self, x: Tensor, context: Tensor | None = None) -> None: ...


class Required(nn.Module):
    def forward(self, x: Tensor, lengths: Tensor) -> None: ...


class Targets(nn.Module):
    def forward(self, x: Tensor, targets: Tensor | None = None) -> None: ...


class Several(nn.Module):
    def forward(self, *inputs: Tensor) -> None: ...


class Masked(nn.Module):
    def forward(self, src: Tensor, src_mask: Tensor | None = None) -> None: ...


@pytest.mark.parametrize(
    ("model", "batch", "count"),
    [
        (Causal(), (IDS,), 1),
        (Causal(), (IDS, IDS), 1),
        (Causal(), (IDS, LABELS), 1),
        (Causal(), (IDS, SHIFTED), 1),
        (Causal(), (IDS, CLASSES), 1),
        (Causal(), (IDS, IDS.flip(1)), 1),
        (Causal(), (IDS, ONES), 2),
        (Causal(), (IDS, ONES.bool()), 2),
        (Causal(), [IDS, ONES, LABELS], 2),
        (nn.DataParallel(Causal()), (IDS, IDS), 1),
        (Two(), (X, X), 2),
        (Two(), (X, X, CLASSES), 2),
        (Two(), (IDS, IDS), 1),
        (Two(), (X, None), 2),
        (Required(), (X, CLASSES), 2),
        (Required(), (IDS, IDS), 2),
        (Targets(), (IDS, SHIFTED), 2),
        (Targets(), (X, CLASSES), 2),
        (Several(), (X, X, CLASSES), 3),
        (Several(), (IDS, IDS), 1),
        (Masked(), (X, CLASSES), 1),
        (Masked(), (X, torch.zeros(2, 2)), 2),
        (nn.Sequential(nn.Linear(3, 3)), (X, CLASSES), 1),
        (nn.Linear(3, 3), (X, CLASSES), 1),
    ],
)
def test_what_a_model_gets(model: nn.Module, batch: Any, count: int) -> None:
    found = taken(model, batch)
    assert len(found) == count
    assert all(one is other for one, other in zip(found, batch, strict=False))


def test_what_may_be_labels_or_an_argument_is_refused() -> None:
    with pytest.raises(AmbiguousItemError, match=r"shape \[2\], which may be classes or the model's 'context'"):
        taken(Two(), (X, CLASSES))

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
            return self.layer(x)

    with pytest.raises(AmbiguousItemError, match="should say which items are labels"):
        mfac.prune_layerwise(Model(), [(X, CLASSES)])


def test_labels_change_neither_weights_nor_perplexity() -> None:
    torch.manual_seed(0)
    batches = [torch.randint(1, 7, (4, 9)) for _ in range(3)]
    found = []
    for data in (batches, [(ids, ids) for ids in batches], [{"input_ids": ids} for ids in batches]):
        model = Causal()
        mfac.prune_layerwise(model, data, method="sparsegpt", finish=mfac.FisherFinish(epochs=1))
        found.append((copy.deepcopy(model.state_dict()), mfac.evaluate_perplexity(model, data)))
    for state, perplexity in found[1:]:
        assert all(torch.equal(value, found[0][0][name]) for name, value in state.items())
        assert perplexity == found[0][1]


def test_masks_in_tuples_are_masks_in_dicts() -> None:
    torch.manual_seed(0)
    model = Causal()
    ids, mask = torch.randint(1, 7, (4, 9)), (torch.rand(4, 9) < 0.7).long()
    wanted = mfac.evaluate_perplexity(model, [{"input_ids": ids, "attention_mask": mask}])
    assert mfac.evaluate_perplexity(model, [(ids, mask)]) == wanted
    assert mfac.evaluate_perplexity(model, [(ids, mask, ids)]) == wanted
    pruned = [Causal(), Causal()]
    mfac.prune_layerwise(pruned[0], [(ids, mask)], method="sparsegpt")
    mfac.prune_layerwise(pruned[1], [{"input_ids": ids, "attention_mask": mask}], method="sparsegpt")
    assert torch.equal(pruned[0].layer.weight, pruned[1].layer.weight)


def test_long_sequences_in_tuples_are_refused() -> None:
    model = Causal()
    model.config = SimpleNamespace(max_position_embeddings=8)  # type: ignore[assignment]
    with pytest.raises(ValueError, match=r"at most 8 tokens.*Found 9"):
        mfac.prune_layerwise(model, [(torch.ones(2, 9).long(), torch.ones(2, 9).long())])
