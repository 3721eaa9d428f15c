"""Models on the meta device: block by block out of files, with the bits of the run in memory."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from several import Processes
from torch import Tensor, nn

import mfac
from mfac.layerwise.weight_files import INDEX
from tests.layerwise.networks import NETWORKS, Broken

pytest.importorskip("safetensors")
from safetensors.torch import load_file, save_file

pytestmark = pytest.mark.cpu_only("files of the CPU's weights")

KINDS = ["encoder", "language", "mixture", "stacks", "carried", "convolutional"]


def on_meta(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.device("meta"):
        return make().eval()


def saved(model: nn.Module, folder: Path, files: int, index: bool) -> Path:
    """A folder as Hugging Face has it: of tied weights one, and blocks that end anywhere."""
    folder.mkdir()
    state, seen = {}, set()
    for name, value in model.state_dict().items():
        if value.data_ptr() not in seen or not value.numel():
            seen.add(value.data_ptr())
            state[name] = value.contiguous()
    names = sorted(state, key=lambda name: name[::-1] if index else "")
    places = {}
    for number in range(files):
        of_file = {name: state[name] for name in names[number::files]}
        places.update(dict.fromkeys(of_file, f"part-{number}.safetensors"))
        save_file(of_file, folder / f"part-{number}.safetensors")
    if index:
        (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))
        (folder / "other.safetensors").write_bytes(b"not of the model")
    return folder


def loaded(folder: Path) -> dict[str, Tensor]:
    places = json.loads((folder / INDEX).read_text())["weight_map"]
    assert {path.name for path in folder.glob("*.safetensors")} == set(places.values())
    files = {file: load_file(folder / file) for file in set(places.values())}
    assert {name for file in files.values() for name in file} == set(places)
    return {name: files[file][name] for name, file in places.items()}


def made(kind: str) -> tuple[nn.Module, list[Any]]:
    torch.manual_seed(0)
    make, batch = NETWORKS[kind]
    return make().eval(), [batch() for _ in range(4)]


@pytest.mark.parametrize("index", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_bits_are_those_of_the_run_in_memory(kind: str, index: bool, tmp_path: Path) -> None:
    model, batches = made(kind)
    source = saved(model, tmp_path / "dense", 3, index)
    empty = on_meta(NETWORKS[kind][0])
    arguments: dict[str, Any] = {"method": "sparsegpt", "sparsity": 0.6}
    report = mfac.prune_layerwise(empty, batches, weights=source, output=tmp_path / "sparse", **arguments)
    inside = list(report.masks) + [n for n, why in report.left_dense.items() if "sample" in why]
    wanted = mfac.prune_layerwise(model, batches, params=inside, **arguments)
    assert report.masks and list(wanted.masks) == list(report.masks)
    state = loaded(tmp_path / "sparse")
    for name, mask in wanted.masks.items():
        assert torch.equal(report.masks[name], mask), name
        assert report.layers[name].error == wanted.layers[name].error
    for name, value in model.state_dict().items():
        if name in state:
            assert state[name].dtype == value.dtype and torch.equal(state[name], value), name
    fresh, _ = made(kind)
    missing = fresh.load_state_dict(state, strict=False).missing_keys
    assert missing == (["head.weight"] if kind == "language" else [])
    assert all(p.device.type == "meta" for p in empty.parameters())
    assert report.kept_zeros == wanted.kept_zeros
    assert report.dense_zeros.keys() <= wanted.dense_zeros.keys()
    assert all(wanted.dense_zeros[name] == count for name, count in report.dense_zeros.items())
    assert mfac.verify(fresh, report)
    assert all(not m._forward_pre_hooks and not m._forward_hooks for m in empty.modules())
    outside = [name for name, why in report.left_dense.items() if "outside of the blocks" in why]
    assert bool(outside) == (kind == "convolutional")


def test_one_block_is_in_memory_at_a_time(tmp_path: Path) -> None:
    model, batches = made("language")
    source = saved(model, tmp_path / "dense", 2, True)
    empty = on_meta(NETWORKS["language"][0])
    block = sum(p.numel() for p in model.get_submodule("layers.0").parameters())
    outside = model.get_parameter("embed.weight").numel()
    seen: list[int] = []

    def count(*_: Any) -> None:
        seen.append(sum(p.numel() for p in empty.parameters() if p.device.type != "meta"))

    for module in empty.modules():
        module.register_forward_pre_hook(count)
    mfac.prune_layerwise(empty, batches, weights=source, output=tmp_path / "sparse", method="magnitude", progress=count)
    assert set(seen) <= {outside, block + outside} and block + outside in seen


def test_dtypes_are_those_of_the_files(tmp_path: Path) -> None:
    model, batches = made("encoder")
    batches = [{"src": batch["src"].bfloat16()} for batch in batches]
    source = saved(model.bfloat16(), tmp_path / "dense", 1, False)
    empty = on_meta(lambda: NETWORKS["encoder"][0]().bfloat16())
    files = list(source.glob("*.safetensors"))
    mfac.prune_layerwise(empty, batches, weights=files[0], output=tmp_path / "sparse", method="sparsegpt")
    report = mfac.prune_layerwise(model, batches, method="sparsegpt")
    state = loaded(tmp_path / "sparse")
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert report.masks
    wide = on_meta(NETWORKS["encoder"][0])
    wide_batches = [{"src": batch["src"].float()} for batch in batches]
    mfac.prune_layerwise(wide, wide_batches, weights=files, output=tmp_path / "wide", method="sparsegpt")
    assert {value.dtype for value in loaded(tmp_path / "wide").values()} == {torch.bfloat16}


class StoppedError(Exception):
    """Raised by a test in the middle of a run."""


def test_a_run_that_was_stopped_goes_on(tmp_path: Path) -> None:
    model, batches = made("language")
    source = saved(model, tmp_path / "dense", 2, False)
    arguments: dict[str, Any] = {
        "weights": source,
        "output": tmp_path / "sparse",
        "method": "sparsegpt",
        "checkpoint": tmp_path / "checkpoint",
    }

    def stop(name: str, done: int, of: int) -> None:
        if done >= 14:
            raise StoppedError

    empty = on_meta(NETWORKS["language"][0])
    with pytest.raises(StoppedError):
        mfac.prune_layerwise(empty, batches, progress=stop, **arguments)
    assert all(p.device.type == "meta" for p in empty.parameters())
    assert not (tmp_path / "sparse" / INDEX).exists()
    solved: list[str] = []
    report = mfac.prune_layerwise(empty, batches, progress=lambda name, done, of: solved.append(name), **arguments)
    assert len(solved) == 1
    wanted = mfac.prune_layerwise(model, batches, method="sparsegpt")
    state = loaded(tmp_path / "sparse")
    for name, mask in wanted.masks.items():
        assert torch.equal(report.masks[name], mask)
        assert torch.equal(state[name], model.get_parameter(name))


class Turned(nn.Module):
    """Blocks after a table that is made by the model, and in no state dict."""

    def __init__(self, device: str | None = None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(2))
        self.register_buffer("table", torch.linspace(0, 1, 6, device=device), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.table
        for block in self.blocks:
            x = block(x)
        return x


def test_parameters_on_meta_leave_tables_and_ties(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, batches = Turned(), [torch.randn(20, 6) for _ in range(3)]
    source = saved(model, tmp_path / "dense", 1, False)
    with mfac.parameters_on_meta():
        empty = Turned()
        tied = NETWORKS["language"][0]()
        attention, lazy = nn.MultiheadAttention(4, 2), nn.LazyLinear(3)
        assert isinstance(nn.Linear(4, 4, bias=False).bias, type(None))
    assert not nn.Linear(2, 2).weight.is_meta  # as before
    assert tied.head.weight is tied.embed.weight
    assert isinstance(lazy.weight, nn.parameter.UninitializedParameter)
    assert all(p.is_meta and p.requires_grad for made in (empty, tied, attention) for p in made.parameters())
    assert torch.equal(empty.table, model.table)
    report = mfac.prune_layerwise(empty.eval(), batches, weights=source, output=tmp_path / "sparse", method="sparsegpt")
    mfac.prune_layerwise(model.eval(), batches, method="sparsegpt", allocation="uniform")
    state = loaded(tmp_path / "sparse")
    for name in report.masks:
        assert torch.equal(state[name], model.get_parameter(name))


def test_what_is_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Turned(), [torch.randn(20, 6)]
    source = saved(model, tmp_path / "dense", 1, False)
    (tmp_path / "none").mkdir()
    (tmp_path / "used").mkdir()
    save_file({"a": torch.zeros(1)}, tmp_path / "used" / "a.safetensors")
    state = {name: value.clone() for name, value in model.state_dict().items()}
    save_file({**state, "blocks.0.0.weight": torch.zeros(2, 6)}, tmp_path / "shape.safetensors")
    save_file({**state, "blocks.0.0.weight": torch.zeros(6, 6, dtype=torch.int8)}, tmp_path / "int8.safetensors")
    save_file({name: value for name, value in state.items() if "1.0.b" not in name}, tmp_path / "less.safetensors")

    def flat() -> nn.Module:
        return nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))

    def placed() -> nn.Module:
        return Turned("cpu")

    out = tmp_path / "out"
    cases: list[tuple[Callable[[], nn.Module], dict[str, Any], str]] = [
        (placed, {"weights": source}, "`output` should be given together with `weights`"),
        (placed, {"output": out}, "`weights` should be given together with `output`"),
        (flat, {"weights": source, "output": out}, "one list of like blocks.*Found 0 lists"),
        (Turned, {"weights": source, "output": out}, r"buffers on the CPU.*'table'.*parameters_on_meta"),
        (placed, {"weights": tmp_path / "none", "output": out}, "files of safetensors"),
        (placed, {"weights": tmp_path / "no.safetensors", "output": out}, "files that are there"),
        (placed, {"weights": source, "output": source}, "another folder"),
        (placed, {"weights": source, "output": tmp_path / "used"}, "no files of another model"),
        (placed, {"weights": tmp_path / "shape.safetensors", "output": out}, r"shape \[2, 6\], not \[6, 6\]"),
        (placed, {"weights": tmp_path / "int8.safetensors", "output": out}, "16 bits or more"),
        (placed, {"weights": tmp_path / "less.safetensors", "output": out}, r"no 'blocks\.1\.0\.bias'"),
        (placed, {"weights": [source / "part-0.safetensors"] * 2, "output": out}, "each name once"),
    ]
    for make, arguments, words in cases:
        with pytest.raises(ValueError, match=words):
            mfac.prune_layerwise(on_meta(make), x, **arguments)
        assert not out.exists()
    with pytest.raises(ValueError, match="all its parameters on the meta device"):
        mfac.prune_layerwise(model, x, weights=source, output=out)
    with pytest.raises(ValueError, match="batches that the model takes"):
        mfac.prune_layerwise(on_meta(placed), [torch.randn(20, 5)], weights=source, output=out)
    report = mfac.prune_layerwise(on_meta(placed), x, weights=source, output=out)
    wanted = mfac.prune_layerwise(copy.deepcopy(model), x)
    assert all(torch.equal(mask, report.masks[name]) for name, mask in wanted.masks.items())


def test_blocks_that_cannot_be_cut_are_refused_before_one_is_solved(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = saved(Broken(), tmp_path / "dense", 1, False)
    solved: list[str] = []
    with pytest.raises(ValueError, match=r"run by themselves.*does not take what the block before returns"):
        mfac.prune_layerwise(
            on_meta(Broken),
            [torch.randn(20, 6)],
            weights=source,
            output=tmp_path / "sparse",
            progress=lambda name, done, of: solved.append(name),
        )
    assert not solved and not list((tmp_path / "sparse").glob("*"))


def test_tensors_that_the_model_lacks_are_left_out_and_said(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Turned()
    save_file({**model.state_dict(), "extra": torch.zeros(2)}, tmp_path / "dense.safetensors")
    report = mfac.prune_layerwise(
        on_meta(lambda: Turned("cpu")),
        [torch.randn(20, 6)],
        weights=tmp_path / "dense.safetensors",
        output=tmp_path / "sparse",
    )
    assert "'extra'" in report.notes[0]
    assert set(loaded(tmp_path / "sparse")) == set(model.state_dict())


def by_two(folder: str) -> dict[str, Tensor]:
    _, batches = made("mixture")
    report = mfac.prune_layerwise(
        on_meta(NETWORKS["mixture"][0]),
        batches,
        method="sparsegpt",
        weights=f"{folder}/dense",
        output=f"{folder}/two",
        process_group=dist.group.WORLD,
    )
    return {name: mask.clone() for name, mask in report.masks.items()}


@pytest.fixture
def two() -> Iterator[Processes]:
    processes = Processes(2)
    yield processes
    processes.end()


def test_what_describes_the_model_comes_along(tmp_path: Path) -> None:
    model, batches = made("language")
    source = saved(model, tmp_path / "dense", 2, True)
    (source / "config.json").write_text('{"hidden_size": 16}')
    (source / "pytorch_model.bin").write_bytes(b"other weights")
    mfac.prune_layerwise(on_meta(NETWORKS["language"][0]), batches, weights=source, output=tmp_path / "sparse")
    assert (tmp_path / "sparse" / "config.json").read_text() == '{"hidden_size": 16}'
    assert not (tmp_path / "sparse" / "pytorch_model.bin").exists()
    again = [source / name for name in ("part-0.safetensors", "part-1.safetensors")]
    mfac.prune_layerwise(on_meta(NETWORKS["language"][0]), batches, weights=again, output=tmp_path / "of files")
    assert not (tmp_path / "of files" / "config.json").exists()


def test_two_ranks_write_what_one_does(two: Processes, tmp_path: Path) -> None:
    model, batches = made("mixture")
    saved(model, tmp_path / "dense", 1, False)
    first, second = two.run(by_two, str(tmp_path))
    report = mfac.prune_layerwise(model, batches, method="sparsegpt")
    state = loaded(tmp_path / "two")
    for name, mask in report.masks.items():
        assert torch.equal(first[name], mask) and torch.equal(second[name], mask)
        torch.testing.assert_close(state[name], model.get_parameter(name).detach(), rtol=1e-4, atol=1e-5)
