"""Masks: made, compared, saved and applied."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import classifier, random_masks, train
from torch import nn
from torch.nn.utils import prune as torch_prune

import mfac
from mfac.masks.packing import pack_bits, unpack_bits

SUFFIXES = [
    ".pt",
    pytest.param(
        ".safetensors", marks=pytest.mark.skipif(find_spec("safetensors") is None, reason="needs safetensors")
    ),
]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_files_hold_a_bit_a_weight(tmp_path: Path, suffix: str):
    masks = mfac.Masks(
        {
            "layer.weight": torch.rand(1000, 1001) < 0.3,
            "odd": torch.rand(3, 1, 7) < 0.5,
            "scalar": torch.tensor(True),
            "empty": torch.zeros(0, 4, dtype=torch.bool),
        }
    )
    path = tmp_path / f"masks{suffix}"
    size = masks.save(path)
    assert size == path.stat().st_size
    assert 1000 * 1001 / 8 <= size <= 1000 * 1001 / 8 + 4096
    assert mfac.Masks.load(path) == masks
    assert list(mfac.Masks.load(path)) == list(masks)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@given(shape=st.lists(st.integers(0, 9), max_size=3), seed=st.integers(0, 99))
def test_bits_go_and_come_back(shape: list[int], seed: int):
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.5
    bits = pack_bits(mask)
    assert bits.dtype == torch.uint8
    assert len(bits) == -(-mask.numel() // 8)
    assert torch.equal(unpack_bits(bits, shape), mask)


def test_bits_of_a_mask_in_another_memory_format():
    mask = (torch.rand(2, 3, 4, 5) < 0.5).contiguous(memory_format=torch.channels_last)
    assert torch.equal(unpack_bits(pack_bits(mask), mask.shape), mask)
    with pytest.raises(ValueError, match=r"A mask of shape \[9\] should have 2 bytes. Found \[1\]"):
        unpack_bits(torch.zeros(1, dtype=torch.uint8), [9])


def test_files_that_hold_something_else_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    masks = random_masks(classifier())
    with pytest.raises(ValueError, match=r"should end in '.safetensors', or in '.pt' or '.pth'.*Found 'masks.bin'"):
        masks.save("masks.bin")
    with pytest.raises(FileNotFoundError, match=r"Parameter `path` should be a file"):
        mfac.Masks.load(tmp_path / "none.pt")
    torch.save({"a": torch.zeros(2)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"should be a file of 'mfac.masks'. Found something else"):
        mfac.Masks.load(tmp_path / "other.pt")
    monkeypatch.setattr("mfac.masks.storage.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"`pip install safetensors`. A path that ends in '.pt' needs nothing"):
        masks.save(tmp_path / "masks.safetensors")


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    masks = random_masks(classifier())
    masks.save(tmp_path / "masks.pt")
    monkeypatch.setattr(torch, "save", lambda *_: (_ for _ in ()).throw(OSError("no space left")))
    with pytest.raises(OSError, match="no space left"):
        random_masks(classifier(), seed=8).save(tmp_path / "masks.pt")
    assert [file.name for file in tmp_path.iterdir()] == ["masks.pt"]
    assert mfac.Masks.load(tmp_path / "masks.pt") == masks


def test_zeros_of_a_model():
    model = classifier()
    masks = random_masks(model)
    masks.apply_(model)
    assert mfac.Masks.from_zeros(model) == masks
    assert list(mfac.Masks.from_zeros(model, "2.*")) == ["2.weight", "2.bias"]
    nn.init.zeros_(model[2].weight)  # a branch that starts at zero
    assert list(mfac.Masks.from_zeros(model)) == ["0.weight"]
    assert not bool(mfac.Masks.from_zeros(model, ["2.weight"])["2.weight"].any())
    with pytest.raises(ValueError, match=r"Parameter `params` should select at least one"):
        mfac.Masks.from_zeros(nn.Sequential(nn.BatchNorm1d(3)))


def test_masks_of_torch_pruning_serve_before_and_after_its_removal():
    model = classifier()
    torch_prune.l1_unstructured(model[0], "weight", amount=0.5)
    masks = mfac.Masks.from_torch_prune(model)
    assert list(masks) == ["0.weight"]
    assert masks.sparsity == 0.5
    masks.apply_(model)
    assert torch.equal(model[0].weight_orig != 0, masks["0.weight"])
    torch_prune.remove(model[0], "weight")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    masks.attach(model, optimizer)
    train(model, optimizer, 2)
    assert torch.equal(model[0].weight != 0, masks["0.weight"])
    under_its_old_name = mfac.Masks({"0.weight_orig": masks["0.weight"]})
    under_its_old_name.apply_(model)
    with pytest.raises(ValueError, match=r"should have parameters under torch.nn.utils.prune"):
        mfac.Masks.from_torch_prune(model)


def test_algebra_counts_and_words():
    a = mfac.Masks({"x": torch.tensor([True, True, False, False]), "y": torch.tensor([True])})
    b = mfac.Masks({"x": torch.tensor([True, False, True, False]), "z": torch.tensor([False])})
    both = a & b
    assert {name: mask.tolist() for name, mask in both.items()} == {
        "x": [True, False, False, False],
        "y": [True],
        "z": [False],
    }
    assert a & {"x": b["x"]} == {"x": b["x"]} & a
    assert a.counts() == {"x": (2, 4), "y": (1, 1)}
    assert a.sparsity == pytest.approx(2 / 5)
    assert mfac.Masks({}).sparsity == 0
    assert repr(a) == "Masks(2 tensors, 3 of 5 weights kept, sparsity 0.4000)"
    assert a == dict(a)
    assert a != b
    assert a != {"x": a["x"]}
    assert a != 3
    with pytest.raises(ValueError, match=r"should have 'x' of shape \[4\]. Found \[3\]"):
        a & {"x": torch.ones(3, dtype=torch.bool)}
    with pytest.raises(TypeError, match=r"should hold bool tensors, True = kept. Found torch.float32 for 'x'"):
        mfac.Masks({"x": torch.ones(2)})
    with pytest.raises(TypeError, match=r"should be a mapping of names to bool tensors. Found list"):
        mfac.Masks([torch.ones(2)])


def test_names_and_shapes_that_are_not_the_models_are_refused():
    model = classifier()
    before = model[0].weight.detach().clone()
    good = {"0.weight": torch.zeros(32, 12, dtype=torch.bool)}
    with pytest.raises(ValueError, match=r"should have every parameter .* Found no '1.weight' among \['0.weight'"):
        mfac.Masks({**good, "1.weight": torch.ones(2, dtype=torch.bool)}).apply_(model)
    with pytest.raises(ValueError, match=r"should have '2.weight' of its mask's shape \[2\]. Found \[3, 32\]"):
        mfac.Masks({**good, "2.weight": torch.ones(2, dtype=torch.bool)}).apply_(model)
    assert torch.equal(model[0].weight, before)
    with pytest.raises(TypeError, match=r"Parameter `optimizer` should be a torch.optim.Optimizer. Found list"):
        mfac.Masks(good).attach(model, [])


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    path = tmp_path / "masks.pt"
    path.write_bytes(b"abc")
    with pytest.raises(ValueError, match=r"file of 'mfac\.masks'\. Found one at .*masks\.pt' that cannot"):
        mfac.Masks.load(path)
    with pytest.raises(ValueError, match="`source` should be a report as JSON"):
        mfac.PruningReport.from_json(path)
