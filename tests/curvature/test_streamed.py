"""The Fisher over a store read by column tiles equals the Fisher over the stored tensor."""

from __future__ import annotations

import pytest
import torch

import mfac
from mfac.curvature import streamed
from mfac.curvature.streamed import StreamedFisher, fisher_of
from mfac.gradients import store as stores
from mfac.gradients.store import FileStore, HalfStore
from mfac.pruning.blocks import block_factors

pytestmark = pytest.mark.cpu_only("stores are of the CPU")


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    monkeypatch.setattr(stores, "TILE_ENTRIES", 1 << 10)
    monkeypatch.setattr(streamed, "IN_MEMORY", 0)


def filled(kind: str, rows: torch.Tensor, folder):
    rank, dim = rows.shape
    store = HalfStore(rank, dim, rows.dtype) if kind == "bf16" else FileStore(rank, dim, rows.dtype, folder)
    store.write_(0, rows[:4])
    store.write_(4, rows[4:])
    return store


@pytest.mark.parametrize("kind", ["bf16", "file"])
@pytest.mark.parametrize("share", [1.0, 0.4, 0.01])
def test_products_are_those_of_the_rounded_rows(kind, share, tmp_path):
    torch.manual_seed(0)
    rows = torch.randn(9, 2503)
    live = None if share == 1 else torch.rand(2503) < share
    window = rows.bfloat16().float()
    window = window if live is None else window[:, live].contiguous()
    fisher = fisher_of(filled(kind, rows, tmp_path), mfac.relative(0.02), live)
    expected = mfac.EmpiricalFisher(window, mfac.relative(0.02))
    assert isinstance(fisher, StreamedFisher) and fisher.dim == window.shape[1]
    v, a = torch.randn(2, fisher.dim), torch.randn(9, dtype=torch.float64)
    i, kept = torch.randint(fisher.dim, (7,)), torch.rand(fisher.dim) < 0.6
    # Sums in float64 over other tiles, rounded once to float32; the diagonal is right to 2⁻¹⁸ by
    # its own bound.
    same = {"rtol": 2e-6, "atol": 2e-6 / fisher.damping}
    torch.testing.assert_close(fisher.damping, expected.damping, rtol=1e-12, atol=0)
    torch.testing.assert_close(fisher.gram(), expected.gram(), rtol=1e-12, atol=1e-9)
    torch.testing.assert_close(fisher.ihvp(v), expected.ihvp(v), **same)
    torch.testing.assert_close(fisher.ihvp_of_combination(a), expected.ihvp_of_combination(a), **same)
    torch.testing.assert_close(fisher.inverse_element(i, i.flip(0)), expected.inverse_element(i, i.flip(0)), **same)
    torch.testing.assert_close(fisher.inverse_submatrix(i, i), expected.inverse_submatrix(i, i), **same)
    torch.testing.assert_close(fisher.inverse_diagonal(), expected.inverse_diagonal(), rtol=2**-17, atol=0)
    torch.testing.assert_close(fisher.matvec(v), expected.matvec(v), rtol=2e-6, atol=2e-6)
    torch.testing.assert_close(fisher.dot(v), expected.dot(v), rtol=1e-12, atol=1e-9)
    torch.testing.assert_close(fisher.logdet(), expected.logdet(), rtol=1e-10, atol=0)
    smaller, expected_smaller = fisher.restricted(kept), expected.restricted(kept)
    torch.testing.assert_close(smaller.inverse_diagonal(), expected_smaller.inverse_diagonal(), rtol=2**-17, atol=0)


def test_few_columns_are_held_in_memory(tmp_path, monkeypatch):
    store = filled("file", torch.randn(9, 100), tmp_path)
    assert isinstance(fisher_of(store, 0.1), StreamedFisher)
    assert not isinstance(fisher_of(store, 0.1, torch.arange(100) < 9), StreamedFisher)  # m >= n: the primal form
    monkeypatch.setattr(streamed, "IN_MEMORY", 900)
    assert not isinstance(fisher_of(store, 0.1), StreamedFisher)


def test_gradients_that_are_not_in_memory_are_not_given_out(tmp_path):
    with pytest.raises(RuntimeError, match="are not in memory"):
        _ = fisher_of(filled("file", torch.randn(9, 100), tmp_path), 0.1).grads


def test_the_file_is_gone_when_the_store_is(tmp_path):
    store = filled("file", torch.randn(9, 100), tmp_path)
    del store
    assert list(tmp_path.iterdir()) == []


def test_a_row_that_is_not_finite_is_refused(tmp_path):
    rows = torch.randn(9, 100)
    rows[3, 7] = torch.inf
    with pytest.raises(ValueError, match="should be finite"):
        fisher_of(filled("bf16", rows, tmp_path), 0.1)


@pytest.mark.parametrize("kind", ["bf16", "file"])
@pytest.mark.parametrize("block_size", [7, 64, 5000])  # tiles have 113 columns, no multiple of these
def test_blocks_of_a_streamed_fisher_are_those_in_memory(kind, block_size, tmp_path):
    torch.manual_seed(0)
    rows = torch.randn(9, 2503)
    live = torch.rand(2503) < 0.7
    window = rows.bfloat16().float()[:, live].contiguous()
    found, expected = (
        [factors.mT @ factors for _, _, factors in block_factors(fisher, block_size)]
        for fisher in (StreamedFisher(filled(kind, rows, tmp_path), 1e-2, live), mfac.EmpiricalFisher(window, 1e-2))
    )
    torch.testing.assert_close(
        torch.cat([blocks.flatten() for blocks in found]),
        torch.cat([blocks.flatten() for blocks in expected]),
        rtol=1e-12,
        atol=1e-15,
    )


def test_columns_of_blocks_follow_one_another(tmp_path):
    fisher = StreamedFisher(filled("file", torch.randn(9, 2503), tmp_path), 1e-2)
    columns = [columns for columns, _, _ in block_factors(fisher, 64)]
    assert [c.start for c in columns] == [0, *(c.stop for c in columns[:-1])]
    assert columns[-1].stop == 2503
