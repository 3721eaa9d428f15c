"""Pruned models elsewhere: plain, compact, 2:4 and ONNX; and what each refuses."""

from __future__ import annotations

import copy
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from models import batches, classifier, conv_classifier
from torch import nn
from torch.nn.utils import prune as torch_prune

import mfac

SUFFIXES = [
    ".pt",
    pytest.param(
        ".safetensors", marks=pytest.mark.skipif(find_spec("safetensors") is None, reason="needs safetensors")
    ),
]


def masked(model: nn.Module, density: float = 0.2) -> mfac.Masks:
    generator = torch.Generator().manual_seed(3)
    masks = mfac.Masks(
        {
            name: torch.rand(p.shape, generator=generator) < density
            for name, p in model.named_parameters()
            if p.dim() > 1
        }
    )
    masks.apply_(model)
    return masks


def test_a_plain_state_is_the_models_own():
    model = conv_classifier()
    dense = copy.deepcopy(model)
    masks = masked(model)
    plain = mfac.plain_state_dict(dense, masks)  # the masks are applied to a copy
    assert list(plain) == list(model.state_dict())
    assert all(torch.equal(plain[name], tensor) for name, tensor in model.state_dict().items())
    assert bool((dense[0].weight != 0).all())


def test_a_plain_state_has_no_prefixes():
    inner = classifier()
    model = nn.Sequential(nn.DataParallel(inner[0]), inner[1], torch.compile(inner[2], backend="eager"))
    assert list(mfac.plain_state_dict(nn.DataParallel(model))) == list(inner.state_dict())


def test_a_plain_state_of_torchs_pruning_has_plain_names():
    model = classifier()
    torch_prune.l1_unstructured(model[0], "weight", amount=0.5)
    masks = mfac.Masks.from_torch_prune(model)
    plain = mfac.plain_state_dict(model, masks)
    assert plain.keys() == classifier().state_dict().keys()
    assert torch.equal(plain["0.weight"] != 0, masks["0.weight"])
    other = classifier(seed=4)
    other.load_state_dict(plain)
    x = batches(1)[0][0]
    torch.testing.assert_close(other(x), model(x), rtol=0, atol=0)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compact_files_hold_bits_and_kept_values(tmp_path: Path, suffix: str, dtype: torch.dtype):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(300, 200), nn.BatchNorm1d(200), nn.Linear(200, 300)).to(dtype)
    masks = masked(model, 0.1)
    path = tmp_path / f"model{suffix}"
    size = mfac.save_compact(model, masks, path)
    assert size == path.stat().st_size
    kept = sum(count.kept for count in masks.counts().values())
    others = sum(t.numel() * t.element_size() for n, t in model.state_dict().items() if n not in masks)
    floor = 2 * 200 * 300 / 8 + kept * dtype.itemsize + others
    assert floor <= size <= floor + 8192  # names, shapes and the archive's own entries

    loaded = nn.Sequential(nn.Linear(300, 200), nn.BatchNorm1d(200), nn.Linear(200, 300)).to(dtype)
    assert mfac.load_compact_(nn.DataParallel(loaded), path) == masks
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_compact_files_write_shared_tensors_once(tmp_path: Path, suffix: str):
    def tied() -> nn.Sequential:
        model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 64))
        model[1].weight = model[0].weight
        model[2].bias = model[1].bias
        return model

    model = tied()
    masks = mfac.Masks({"0.weight": torch.rand(64, 64) < 0.5})
    masks.apply_(model)
    size = mfac.save_compact(model, masks, tmp_path / f"m{suffix}")
    assert size < 64 * 64 * (4 + 4 * 0.6) + 8192
    other = tied()
    mfac.load_compact_(other, tmp_path / f"m{suffix}")
    assert all(torch.equal(a, b) for a, b in zip(other.parameters(), model.parameters(), strict=True))


def test_masks_that_drop_nothing_take_no_bits(tmp_path: Path):
    model = nn.Linear(100, 100)
    masks = mfac.Masks({"weight": torch.ones(100, 100, dtype=torch.bool)})
    size = mfac.save_compact(model, masks, tmp_path / "m.pt")
    assert size < 4 * 101 * 100 + 3000
    assert mfac.load_compact_(nn.Linear(100, 100), tmp_path / "m.pt") == masks


def test_compact_files_refuse_what_would_be_lost_or_does_not_fit(tmp_path: Path):
    model = classifier()
    path = tmp_path / "m.pt"
    masks = mfac.Masks({"0.weight": torch.zeros(32, 12, dtype=torch.bool)})
    with pytest.raises(ValueError, match=r"call masks.apply_\(model\). Found 384 others in '0.weight'"):
        mfac.save_compact(model, masks, path)
    with pytest.raises(ValueError, match=r"Parameter `masks` should name tensors of the model. Found 'x'"):
        mfac.save_compact(model, {"x": masks["0.weight"]}, path)
    with pytest.raises(ValueError, match=r"should have '2.weight' of shape \[3, 32\]. Found \[32, 12\]"):
        mfac.save_compact(model, {"2.weight": masks["0.weight"]}, path)
    with pytest.raises(ValueError, match=r"should have '2.weight' of shape \[3, 32\]. Found \[32, 12\]"):
        mfac.plain_state_dict(model, {"2.weight": masks["0.weight"]})
    assert not path.exists()
    masks.apply_(model)
    mfac.save_compact(model, masks, path)
    for other, message in (
        (classifier(hidden=16), r"should have '0.weight' of shape \[32, 12\]. Found \[16, 12\]"),
        (nn.Linear(2, 2), r"Found no \['0.bias', .* in the model, and no \['bias', 'weight'\] in the state"),
    ):
        before = copy.deepcopy(other.state_dict())
        with pytest.raises(ValueError, match=message):
            mfac.load_compact_(other, path)
        assert all(torch.equal(before[name], tensor) for name, tensor in other.state_dict().items())


def test_semi_structured_tensors_are_refused_without_the_hardware():
    model = nn.Linear(64, 64).cpu()
    with pytest.raises(RuntimeError, match=r"need a GPU of compute capability 8.0 or above.*Found the model on 'cpu'"):
        mfac.to_semi_structured_(model)
    assert isinstance(model.weight, nn.Parameter)


@pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 0), reason="needs sparse tensor cores"
)
def test_semi_structured_tensors_compute_the_same():
    model = nn.Sequential(nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 128)).half().cuda()
    mfac.Masks({"0.weight": torch.tensor([True, True, False, False]).repeat(128, 32)}).apply_(model)
    x = torch.randn(128, 128, dtype=torch.float16, device="cuda")
    expected = model(x)
    assert mfac.to_semi_structured_(model) == {"2.weight": "is not 2:4"}
    torch.testing.assert_close(model(x), expected, rtol=1e-2, atol=1e-2)


def test_onnx_names_what_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("mfac.masks.export.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"`pip install onnx onnxscript onnxruntime`. Found no \['onnx', "):
        mfac.export_onnx(classifier(), torch.zeros(2, 12), tmp_path / "m.onnx")


@pytest.mark.filterwarnings("ignore")  # of onnx's exporter itself
@pytest.mark.skipif(
    not all(map(find_spec, ("onnx", "onnxscript", "onnxruntime"))), reason="needs onnx, onnxscript and onnxruntime"
)
@pytest.mark.parametrize(
    ("model", "shape"), [(classifier(), (4, 12)), (conv_classifier(), (2, 1, 6, 6))], ids=["linear", "convolution"]
)
def test_onnx_is_run_and_keeps_the_zeros(tmp_path: Path, model: nn.Module, shape: tuple[int, ...]):
    import onnx
    import onnx.numpy_helper

    masked(model)
    model.train()
    gap = mfac.export_onnx(nn.DataParallel(model), torch.randn(shape), tmp_path / "m.onnx")
    assert gap <= 1e-5
    assert model.training
    found = onnx.load(tmp_path / "m.onnx")
    zeros = sum(
        int((onnx.numpy_helper.to_array(one) == 0).sum()) for one in found.graph.initializer if len(one.dims) > 1
    )
    assert zeros == sum(int((p == 0).sum()) for p in model.parameters() if p.dim() > 1)
    with pytest.raises(ValueError, match=r"should be the model's within -1. Found a difference of"):
        mfac.export_onnx(model, torch.randn(shape), tmp_path / "m.onnx", tolerance=-1)
