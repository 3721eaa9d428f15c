"""Layer-wise runs on disk: what was stopped goes on, and what is of another run is refused."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

import mfac
from mfac.layerwise.solvers.alps import alps
from mfac.layerwise.solvers.sweep import sparsegpt
from tests.layerwise.networks import made


class StoppedError(Exception):
    """Raised by a test in the middle of a run."""


def test_a_run_that_was_stopped_goes_on(tmp_path: Path) -> None:
    model, batches = made("language")
    start, whole = copy.deepcopy(model), copy.deepcopy(model)
    wanted = mfac.prune_layerwise(whole, batches, method="sparsegpt")
    for after in (7, 14):
        folder = tmp_path / str(after)
        stopped, resumed = copy.deepcopy(start), copy.deepcopy(start)

        def stop(name: str, done: int, of: int, after: int = after) -> None:
            if done >= after:
                raise StoppedError

        with pytest.raises(StoppedError):
            mfac.prune_layerwise(stopped, batches, method="sparsegpt", checkpoint=folder, progress=stop)
        solved: list[str] = []
        report = mfac.prune_layerwise(
            resumed,
            batches,
            method="sparsegpt",
            checkpoint=folder,
            progress=lambda name, done, of, solved=solved: solved.append(name),
        )
        assert len(solved) == 3 - after // 7
        for name, mask in wanted.masks.items():
            assert torch.equal(mask, report.masks[name])
            assert torch.equal(dict(resumed.named_parameters())[name], dict(whole.named_parameters())[name])
        assert report.layers["layers.0.q.weight"].error == wanted.layers["layers.0.q.weight"].error
    with pytest.raises(ValueError, match="another `sparsity`"):
        mfac.prune_layerwise(copy.deepcopy(start), batches, 0.4, method="sparsegpt", checkpoint=tmp_path / "7")


def test_a_checkpoint_of_another_model_or_of_other_data_is_refused(tmp_path: Path) -> None:
    model, batches = made("language")
    start = copy.deepcopy(model)
    mfac.prune_layerwise(model, batches, method="sparsegpt", checkpoint=tmp_path)
    again = mfac.prune_layerwise(copy.deepcopy(start), batches, method="sparsegpt", checkpoint=tmp_path)
    mfac.prune_layerwise(model, batches, method="sparsegpt", checkpoint=tmp_path)  # as the run left it
    assert again.sparsity == 0.5
    other = copy.deepcopy(start)
    with torch.no_grad():
        other.get_parameter("layers.0.q.weight").mul_(1.5)
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(ValueError, match=r"of a run on this model.*'layers\.0\.q\.weight'"):
        mfac.prune_layerwise(other, batches, method="sparsegpt", checkpoint=tmp_path)
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())
    with pytest.raises(ValueError, match="another `data`"):
        mfac.prune_layerwise(copy.deepcopy(start), batches[:1], method="sparsegpt", checkpoint=tmp_path)


def test_a_file_that_is_cut_short_is_named(tmp_path: Path) -> None:
    model, batches = made("language")
    start = copy.deepcopy(model)
    mfac.prune_layerwise(model, batches, method="sparsegpt", checkpoint=tmp_path)
    path = sorted(tmp_path.glob("*.pt"))[0]
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=f"whose files can be read. Found .*{path.name}"):
        mfac.prune_layerwise(start, batches, method="sparsegpt", checkpoint=tmp_path)


def test_methods_of_ones_own_are_told_apart_by_what_they_do(tmp_path: Path) -> None:
    model, batches = made("mlp")
    start = copy.deepcopy(model)
    mfac.prune_layerwise(model, batches, method=lambda h, w, p, g: sparsegpt(h, w, p, g), checkpoint=tmp_path)
    with pytest.raises(ValueError, match="another `method`"):
        mfac.prune_layerwise(start, batches, method=lambda h, w, p, g: alps(h, w, p, g), checkpoint=tmp_path)


def test_positions_that_are_weighed_want_the_dense_model_again(tmp_path: Path) -> None:
    model, batches = made("language")
    start, whole = copy.deepcopy(model), copy.deepcopy(model)
    arguments: dict[str, Any] = {"method": "sparsegpt", "weigh_inputs": True}
    arguments["loss_fn"] = lambda model, batch: model(batch).logsumexp(-1).mean()
    mfac.prune_layerwise(whole, batches, **arguments)

    def stop(name: str, done: int, of: int) -> None:
        raise StoppedError

    with pytest.raises(StoppedError):
        mfac.prune_layerwise(model, batches, checkpoint=tmp_path, progress=stop, **arguments)
    with pytest.raises(ValueError, match="should be the dense model again"):
        mfac.prune_layerwise(model, batches, checkpoint=tmp_path, **arguments)
    mfac.prune_layerwise(start, batches, checkpoint=tmp_path, **arguments)
    assert all(torch.equal(a, b) for a, b in zip(start.parameters(), whole.parameters(), strict=True))


def test_a_model_without_blocks_goes_on_from_each_layer(tmp_path: Path) -> None:
    model, batches = made("mlp")
    start, whole = copy.deepcopy(model), copy.deepcopy(model)
    seen: list[int] = []
    wanted = mfac.prune_layerwise(whole, batches, progress=lambda name, done, of: seen.append(done))
    assert seen == list(range(1, len(wanted.masks) + 1))

    def stop(name: str, done: int, of: int) -> None:
        if done == 1:
            raise StoppedError

    with pytest.raises(StoppedError):
        mfac.prune_layerwise(model, batches, checkpoint=tmp_path, progress=stop)
    seen.clear()
    mfac.prune_layerwise(start, batches, checkpoint=tmp_path, progress=lambda name, done, of: seen.append(done))
    assert seen == list(range(2, len(wanted.masks) + 1))
    assert all(torch.equal(a, b) for a, b in zip(start.parameters(), whole.parameters(), strict=True))
