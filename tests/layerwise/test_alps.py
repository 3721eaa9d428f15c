"""ALPS where there is little to find: singular, zero and diagonal Hessians, and counts of a few."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import mfac
from mfac.layerwise.hessian import Hessian
from mfac.layerwise.matrix_pattern import MatrixPattern
from mfac.layerwise.solvers.alps import alps, support
from mfac.layerwise.solvers.masks import magnitude, wanda
from mfac.layerwise.solvers.refit import refit
from mfac.layerwise.solvers.sweep import sparsegpt
from mfac.masks.patterns import resolve_pattern
from tests.layerwise.problems import correlated

GRAMS = ["zero", "unit", "one live", "two live", "low rank", "ill-conditioned", "diagonal", "full"]


def _problem(kind: str, rows: int, columns: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x = normal(2 * columns, columns)
    if kind == "zero":
        x = torch.zeros_like(x)
    elif kind in ("one live", "two live"):
        live = torch.randperm(columns, generator=generator)[: 1 if kind == "one live" else 2]
        x[:, [j for j in range(columns) if j not in live.tolist()]] = 0
    elif kind == "low rank":
        x = x[: max(1, columns // 4)]
    elif kind == "ill-conditioned":
        x = x @ normal(columns, columns)
    gram = x.T @ x
    if kind == "unit":
        gram = torch.eye(columns, dtype=torch.float64)
    if kind == "diagonal":
        gram = torch.logspace(-6, 6, columns, dtype=torch.float64).diag()
    return gram, normal(rows, columns)


def _pattern(text: str, weight: Tensor, sparsity: float) -> MatrixPattern:
    return MatrixPattern.of(resolve_pattern(text), *weight.shape, 1, sparsity)


@settings(max_examples=150)
@given(
    kind=st.sampled_from(GRAMS),
    rows=st.integers(1, 9),
    columns=st.integers(1, 21),
    sparsity=st.sampled_from([0.0, 0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999]),
    scale=st.sampled_from([1e-30, 1.0, 1e30]),
    text=st.sampled_from(["unstructured", "2:4", "1:3", "1x4", "2x2", "rows"]),
    seed=st.integers(0, 99),
)
def test_counts_are_exact(
    kind: str, rows: int, columns: int, sparsity: float, scale: float, text: str, seed: int
) -> None:
    gram, weight = _problem(kind, rows, columns, seed)
    found = mfac.solve_layer(gram, scale * weight, sparsity, text)
    assert found.weight.isfinite().all()
    assert not found.weight[~found.mask].any()
    kept, pattern = int(found.mask.sum()), _pattern(text, weight, sparsity)
    if text == "unstructured":
        assert kept == rows * columns - round(sparsity * rows * columns)
    elif ":" in text:
        keep, group = (int(part) for part in text.split(":"))
        for begin in range(0, columns, group):
            part = found.mask[:, begin : begin + group]
            assert (part.sum(1) == min(keep, part.shape[1])).all()
    else:
        unit = {"1x4": 4, "2x2": 4, "rows": columns}[text]
        assert pattern.kept <= kept < pattern.kept + unit


@pytest.mark.parametrize("kind", GRAMS)
@pytest.mark.parametrize("text", ["unstructured", "2:4", "1:4", "1x4", "rows"])
def test_no_simpler_support_is_better(kind: str, text: str) -> None:
    for seed, (rows, columns, sparsity) in enumerate([(3, 5, 0.5), (16, 32, 0.01), (16, 32, 0.5), (5, 64, 0.9)]):
        gram, weight = _problem(kind, rows, columns, seed)
        hessian, pattern = Hessian(gram), _pattern(text, weight, sparsity)
        found = alps(hessian, weight, pattern)
        ours = hessian.relative_error(weight, found.weight)
        for solver in (magnitude, wanda, sparsegpt):
            kept = solver(hessian, weight, pattern).kept
            if int(kept.sum()) == int(found.kept.sum()):
                theirs = hessian.relative_error(weight, refit(hessian, weight, kept))
                assert ours <= theirs * (1 + 1e-9), (solver, seed)


def test_wide_layers_are_no_worse_than_magnitude_where_columns_are_independent() -> None:
    weight = torch.randn(4, 300, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ours, theirs = (mfac.solve_layer(torch.eye(300), weight, method=method) for method in ("alps", "magnitude"))
    assert torch.equal(ours.mask, theirs.mask)


@pytest.mark.parametrize("text", ["2:4", "1x4", "unstructured"])
def test_the_only_live_column_is_kept(text: str) -> None:
    for seed in range(10):
        gram, weight = _problem("one live", 8, 32, seed)
        kept = support(Hessian(gram), weight, _pattern(text, weight, 0.5))
        assert kept[:, gram.diagonal() > 0].all(), seed


def test_few_entries_that_go_are_looked_for_too() -> None:
    gram, weight = correlated(64, 128, 0)
    hessian, pattern = Hessian(gram), _pattern("unstructured", weight, 0.01)
    kept = support(hessian, weight, pattern)
    assert int(kept.sum()) == 8110
    ours = hessian.relative_error(weight, refit(hessian, weight, kept))
    assert ours < hessian.relative_error(weight, refit(hessian, weight, sparsegpt(hessian, weight, pattern).kept))


def test_a_model_with_one_live_input() -> None:
    torch.manual_seed(0)
    x = torch.zeros(100, 8)
    x[:, 3] = torch.randn(100)
    layer = nn.Linear(8, 4, bias=False)
    wanted = layer(x)
    assert mfac.prune_layerwise(layer, [x], 0.5).sparsity == 0.5
    torch.testing.assert_close(layer(x), wanted, rtol=0.02, atol=1e-6)  # within the damping of 0.01
