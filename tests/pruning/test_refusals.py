"""What cannot be pruned is refused by name, before any work and with the model as it was."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from models import batches, classifier, cross_entropy, same_state, snapshot
from torch import Tensor, nn

import mfac

SETTINGS = {"sparsity": 0.5, "num_gradients": 16, "stages": 1}


class Tokens(nn.Module):
    def __init__(self, *, sparse: bool, bag: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        kind = nn.EmbeddingBag if bag else nn.Embedding
        self.table, self.head = kind(11, 8, sparse=sparse), nn.Linear(8, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        rows = self.table(tokens)
        return self.head(rows if rows.dim() == 2 else rows.mean(1))


@pytest.mark.parametrize("bag", [False, True])
@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
def test_sparse_gradients_of_embeddings_are_gradients(bag: bool, per_sample: bool):
    generator = torch.Generator().manual_seed(0)
    data = [(torch.randint(11, (4, 6), generator=generator), torch.tensor([0, 1, 2, 0])) for _ in range(16)]

    def loss_fn(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    sparse, dense = (
        mfac.collect_gradients(Tokens(sparse=sparse, bag=bag), loss_fn, data, 16, per_sample=per_sample)
        for sparse in (True, False)
    )
    torch.testing.assert_close(sparse, dense)
    report = mfac.prune(Tokens(sparse=True, bag=bag), loss_fn, data, params="*.weight", **SETTINGS)
    assert report.sparsity == 0.5


def on_meta() -> nn.Module:
    with torch.device("meta"):
        return classifier()


def partly_on_meta() -> nn.Module:
    model = classifier()
    model[0] = nn.Linear(12, 32, device="meta")
    return model


def in_inference_mode() -> nn.Module:
    with torch.inference_mode():
        return classifier()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            on_meta,
            r"`model` should have its numbers in memory. Found '0.weight' on the meta device: call model.to_empty",
        ),
        (partly_on_meta, r"Found '0.weight' on the meta device"),
        (
            lambda: nn.Sequential(nn.Linear(12, 8), nn.LazyLinear(3)),
            r"Found '1.weight' of a lazy layer.*: call the model",
        ),
        (in_inference_mode, r"`model` should be made outside torch.inference_mode\(\). Found '0.weight', made inside"),
    ],
    ids=["meta", "partly meta", "lazy", "inference mode"],
)
@pytest.mark.parametrize("options", [{}, {"saliency": "magnitude", "compensation": "none"}])
def test_models_without_numbers(make, message: str, options):
    calls = []

    def loss_fn(model: nn.Module, batch) -> Tensor:
        calls.append(batch)
        return cross_entropy(model, batch)

    for run in (mfac.prune, mfac.plan):
        with pytest.raises(ValueError, match=message):
            run(make(), loss_fn, batches(16), **SETTINGS, **options)
    with pytest.raises(ValueError, match=message):
        mfac.collect_gradients(make(), loss_fn, batches(16), 16)
    with pytest.raises(ValueError, match=message):
        mfac.cost_table(make(), "bytes")
    assert not calls


def test_inference_mode_is_no_place_for_gradients():
    model = classifier()
    with torch.inference_mode():
        data = batches(16)
        with pytest.raises(RuntimeError, match=r"Gradients should be taken outside torch.inference_mode\(\)"):
            mfac.prune(model, cross_entropy, batches(16), **SETTINGS)
        with pytest.raises(RuntimeError, match=r"Gradients should be taken outside torch.inference_mode\(\)"):
            mfac.collect_gradients(model, cross_entropy, batches(16), 16)
    with pytest.raises(ValueError, match=r"`data` should yield tensors made outside .* Found others in batch 0"):
        mfac.prune(model, cross_entropy, data, **SETTINGS)


@pytest.mark.parametrize("damping", [1e-20, 1e-150])
@pytest.mark.parametrize("options", [{}, {"block_size": 16}, {"compensation": "greedy"}, {"saliency": "refined"}])
def test_a_damping_too_small_for_a_block_is_called_that(damping: float, options):
    model = classifier()
    before = snapshot(model)
    with pytest.raises(
        (torch.linalg.LinAlgError, ValueError), match=r"Increase `damping`|`damping` should be at least"
    ):
        mfac.prune(model, cross_entropy, batches(16), damping=damping, **{**SETTINGS, **options})
    assert same_state(model, before)


@pytest.mark.parametrize("block_size", [None, 10])
def test_an_inverse_that_overflows_is_refused(block_size: int | None):
    grads = torch.randn(4, 20, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match=r"`damping` should be at least 2.9e-39 .* in float32, .* Found 1e-39"):
        mfac.EmpiricalFisher(grads, 1e-39, block_size)
    assert math.isfinite(float(mfac.EmpiricalFisher(grads, 1e-38, block_size).inverse_diagonal().max()))
    assert math.isfinite(float(mfac.EmpiricalFisher(grads.double(), 1e-39, block_size).inverse_diagonal().max()))


def test_paths_of_the_wrong_kind(tmp_path: Path):
    model, place = classifier(), tmp_path / "file"
    place.write_text("no folder")
    before = snapshot(model)
    for name in ("checkpoint", "gradients"):
        for path in (place, str(place), place / "below"):
            with pytest.raises(ValueError, match=rf"Parameter `{name}` should be a folder. Found a file at '.*file'"):
                mfac.prune(model, cross_entropy, batches(16), **SETTINGS, **{name: path})
    with pytest.raises(TypeError, match=r"`checkpoint` should be the path of a folder. Found int"):
        mfac.prune(model, cross_entropy, batches(16), **SETTINGS, checkpoint=3)
    assert same_state(model, before)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 cut off"])
def test_a_checkpoint_that_cannot_be_read(tmp_path: Path, content: bytes):
    (tmp_path / "run.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"`checkpoint` should be a folder whose run can be read. Found '.*run.pt'"):
        mfac.prune(classifier(), cross_entropy, batches(16), **SETTINGS, checkpoint=tmp_path)
    for other in ([1], {"format": 1}):
        torch.save(other, tmp_path / "run.pt")
        with pytest.raises(ValueError, match=r"`checkpoint` should be a folder of this version's runs"):
            mfac.prune(classifier(), cross_entropy, batches(16), **SETTINGS, checkpoint=tmp_path)


def test_progress_and_verbose_of_other_types():
    with pytest.raises(TypeError, match=r"`progress` should be a function of a PruningStep, or None. Found 3"):
        mfac.prune(classifier(), cross_entropy, batches(16), **SETTINGS, progress=3)
    with pytest.raises(TypeError, match=r"`verbose` should be True or False. Found 'yes'"):
        mfac.prune(classifier(), cross_entropy, batches(16), **SETTINGS, verbose="yes")
