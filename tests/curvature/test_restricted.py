"""The Fisher over some columns, whose Gram matrix is a difference where few columns drop."""

from __future__ import annotations

import pytest
import torch

import mfac
from mfac.curvature.streamed import StreamedFisher
from tests.curvature.test_streamed import filled


def restricted_both_ways(fisher: mfac.EmpiricalFisher, kept: torch.Tensor):
    """The Fisher by `restricted`, and anew from the columns."""
    return fisher.restricted(kept), mfac.EmpiricalFisher(fisher.grads[:, kept].contiguous(), fisher.damping)


@pytest.mark.parametrize("share", [0.999, 0.9, 0.6, 0.4, 0.1])
@pytest.mark.parametrize("damping", [1e-6, 1.0])
def test_products_are_those_of_the_kept_columns(share: float, damping: float):
    torch.manual_seed(0)
    fisher = mfac.EmpiricalFisher(torch.randn(20, 500, dtype=torch.float64), damping)
    for _ in range(6):  # one after the other, as in the steps of a stage
        kept = torch.rand(fisher.dim) < share
        if int(kept.sum()) < 25:
            break
        found, expected = restricted_both_ways(fisher, kept)
        a = torch.randn(20, dtype=torch.float64)
        torch.testing.assert_close(found.gram(), expected.gram(), rtol=1e-12, atol=1e-11)
        torch.testing.assert_close(found.ihvp_of_combination(a), expected.ihvp_of_combination(a), rtol=1e-9, atol=1e-11)
        fisher = found


def test_rows_of_which_nearly_nothing_is_left_lose_no_digits():
    torch.manual_seed(0)
    rows = torch.randn(8, 300, dtype=torch.float64)
    rows[3, :40] *= 1e9
    kept = torch.arange(300) >= 40
    found, expected = restricted_both_ways(mfac.EmpiricalFisher(rows, 1e-3), kept)
    torch.testing.assert_close(found.gram(), expected.gram(), rtol=1e-13, atol=1e-12)


@pytest.mark.parametrize("kind", ["bf16", "file"])
def test_a_streamed_fisher_over_most_columns(kind, tmp_path, monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr("mfac.curvature.streamed.IN_MEMORY", 1000)
    rows, live = torch.randn(9, 2503), torch.rand(2503) < 0.9
    fisher = StreamedFisher(filled(kind, rows, tmp_path), 1e-2, live)
    kept = torch.rand(fisher.dim) < 0.8
    found = fisher.restricted(kept)
    assert isinstance(found, StreamedFisher)
    assert found.dim == int(kept.sum())
    expected = mfac.EmpiricalFisher(rows.bfloat16().float()[:, live][:, kept].contiguous(), 1e-2)
    torch.testing.assert_close(found.gram(), expected.gram(), rtol=1e-12, atol=1e-10)
    v = torch.randn(found.dim)
    torch.testing.assert_close(found.ihvp(v), expected.ihvp(v))
