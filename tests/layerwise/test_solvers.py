"""Solvers of one layer against dense definitions, and against one another."""

from __future__ import annotations

import pytest
import torch

import mfac
from mfac.core.selection import highest, kth_lowest, lowest
from mfac.layerwise.hessian import Hessian, upper_cholesky
from mfac.layerwise.matrix_pattern import MatrixPattern
from mfac.layerwise.solver import SOLVERS
from mfac.layerwise.solvers.blocks import block_order
from mfac.layerwise.solvers.exact_obs import mask_of_order, obs_order
from mfac.layerwise.solvers.refit import refit
from mfac.layerwise.solvers.swaps import swapped
from mfac.layerwise.solvers.sweep import sparsegpt, sweep
from mfac.masks.patterns import resolve_pattern
from tests.layerwise.problems import best_on, best_support, correlated, greedy, published_sweep


def _pattern(text: str, rows: int, columns: int, sparsity: float, positions: int = 1) -> MatrixPattern:
    return MatrixPattern.of(resolve_pattern(text), rows, columns, positions, sparsity)


@pytest.mark.parametrize(("rows", "columns", "sparsity"), [(7, 12, 0.5), (64, 256, 0.7), (5, 300, 0.9), (3, 1, 0.5)])
def test_a_sweep_is_the_published_one(rows: int, columns: int, sparsity: float) -> None:
    gram, weight = correlated(rows, columns, 0)
    hessian = Hessian(gram)
    found = sparsegpt(hessian, weight, _pattern("unstructured", rows, columns, sparsity))
    wanted, losses = published_sweep(weight, hessian.matrix, found.kept)
    torch.testing.assert_close(found.weight, wanted, rtol=1e-10, atol=1e-10)
    delta = found.weight - weight
    error = (delta @ hessian.matrix * delta).sum()
    torch.testing.assert_close(losses, error, rtol=1e-10, atol=0)


@pytest.mark.parametrize("method", [name for name in SOLVERS if name != "keep_zeros"])
@pytest.mark.parametrize("text", ["unstructured", "2:4", "3:8", "1x4", "4x2", "rows"])
@pytest.mark.parametrize("positions", [1, 3])
def test_counts_and_patterns_are_exact(method: str, text: str, positions: int) -> None:
    rows, columns = 12, 24 * positions
    gram, weight = correlated(rows, columns, 1)
    pattern = _pattern(text, rows, columns, 0.5, positions)
    if method == "exact_obs" and text == "rows":
        with pytest.raises(ValueError, match="should be"):
            SOLVERS[method](Hessian(gram), weight, pattern, None)
        return
    found = SOLVERS[method](Hessian(gram), weight, pattern, None)
    assert not found.weight[~found.kept].any()
    kept = int(found.kept.sum())
    unit = {"1x4": 4, "4x2": 8, "rows": columns}.get(text, 1)
    # A sweep decides block by block, each of which keeps the fewest whole units that are enough.
    blocks = positions if method == "sparsegpt" else 1
    assert pattern.kept <= kept <= pattern.kept + blocks * (unit - 1)
    view = found.kept.view(rows, positions, 24)
    if text == "2:4":
        assert (view.reshape(-1, 4).sum(1) == 2).all()
    if text == "3:8":
        assert (view.reshape(-1, 8).sum(1) == 3).all()
    if text == "1x4":
        assert set(view.reshape(-1, 4).sum(1).tolist()) <= {0, 4}
    if text == "4x2":
        blocks_of = view.view(3, 4, positions, 12, 2).sum((1, 4))
        assert set(blocks_of.flatten().tolist()) <= {0, 8}
    if text == "rows":
        assert set(found.kept.sum(1).tolist()) <= {0, columns}


def test_alps_finds_better_supports_than_sparsegpt() -> None:
    shares = []
    for seed in range(50):
        gram, weight = correlated(16, 64, seed)
        hessian = Hessian(gram)
        pattern = _pattern("unstructured", 16, 64, 0.7)
        masks = [SOLVERS[method](hessian, weight, pattern, None).kept for method in ("alps", "sparsegpt")]
        ours, theirs = (hessian.relative_error(weight, best_on(weight, hessian.matrix, mask)) for mask in masks)
        assert ours <= theirs, seed
        shares.append(ours / theirs)
    assert sum(shares) / len(shares) < 0.85


def test_refit_is_the_normal_equations() -> None:
    gram, weight = correlated(9, 40, 2)
    hessian = Hessian(gram)
    kept = torch.rand(9, 40, generator=torch.Generator().manual_seed(0)) < 0.4
    kept[3], kept[4] = False, True
    found = refit(hessian, weight, kept)
    torch.testing.assert_close(found, best_on(weight, hessian.matrix, kept), rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(found[4], weight[4], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("columns", [1, 5, 12])
def test_exact_obs_is_greedy_by_trial(columns: int) -> None:
    gram, weight = correlated(4, columns, columns)
    hessian = Hessian(gram)
    order, losses = obs_order(hessian, weight, _pattern("unstructured", 4, columns, 0.5))
    for row in range(4):
        wanted, rises = greedy(weight[row], hessian.matrix)
        assert order[row].tolist() == wanted
        torch.testing.assert_close(losses[row], torch.tensor(rises, dtype=torch.float64), rtol=1e-7, atol=1e-9)
    found = SOLVERS["exact_obs"](hessian, weight, _pattern("unstructured", 4, columns, 0.5), None)
    assert torch.equal(found.kept, mask_of_order(order, losses, round(0.5 * 4 * columns)))
    torch.testing.assert_close(found.weight, best_on(weight, hessian.matrix, found.kept), rtol=1e-8, atol=1e-9)


def test_solvers_are_near_the_best_support_of_a_small_row() -> None:
    worst = {"alps": 0.0, "exact_obs": 0.0}
    for seed in range(10):
        gram, weight = correlated(1, 10, seed)
        hessian = Hessian(gram, 1e-6)
        best = best_support(weight[0], hessian.matrix, 5)
        for method in worst:
            found = SOLVERS[method](hessian, weight, _pattern("unstructured", 1, 10, 0.5), None)
            delta = best_on(weight, hessian.matrix, found.kept) - weight
            worst[method] = max(worst[method], float((delta @ hessian.matrix * delta).sum()) / best)
    assert all(1 - 1e-9 <= ratio < 2.5 for ratio in worst.values()), worst


def test_obq_with_a_unit_hessian_is_rounding() -> None:
    torch.manual_seed(0)
    weight = torch.randn(6, 32, dtype=torch.float64)
    grid = mfac.Grid(bits=3, group_size=8)
    hessian = Hessian(torch.eye(32, dtype=torch.float64))
    pattern = _pattern("unstructured", 6, 32, 0.0)
    for method in ("exact_obs", "sparsegpt"):
        found = SOLVERS[method](hessian, weight, pattern, grid)
        torch.testing.assert_close(found.weight, grid.fit(weight).round(weight), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("grid", [mfac.Grid(4, 16), mfac.Grid(3, 24, True), mfac.Grid(2, None, search=True)])
@pytest.mark.parametrize("method", ["sparsegpt", "exact_obs", "alps", "magnitude"])
@pytest.mark.parametrize("sparsity", [0.0, 0.5])
def test_kept_weights_are_on_the_grid(grid: mfac.Grid, method: str, sparsity: float) -> None:
    gram, weight = correlated(5, 60, 3)
    hessian = Hessian(gram)
    found = SOLVERS[method](hessian, weight, _pattern("unstructured", 5, 60, sparsity), grid)
    assert found.grid is not None
    on_grid = found.grid.round(found.weight)
    torch.testing.assert_close(found.weight, on_grid * found.kept, rtol=1e-9, atol=1e-9)
    scale, zero = found.grid.expanded(60)
    again = (found.grid.integers(found.weight).double() - zero) * scale
    torch.testing.assert_close(again * found.kept, found.weight, rtol=1e-9, atol=1e-9)
    if method == "sparsegpt" and sparsity == 0:
        rounded = grid.fit(weight).round(weight)
        assert hessian.relative_error(weight, found.weight) < hessian.relative_error(weight, rounded)


def test_dead_inputs_get_weights_of_zero() -> None:
    gram, weight = correlated(4, 16, 4)
    gram[3], gram[:, 3] = 0, 0
    hessian = Hessian(gram)
    for method, solver in SOLVERS.items():
        found = solver(hessian, weight, _pattern("unstructured", 4, 16, 0.5), None)
        if method not in ("magnitude", "wanda"):
            assert not found.weight[:, 3].any(), method
        assert torch.isfinite(found.weight).all()


def test_damping_is_raised_and_said() -> None:
    gram = torch.diag(torch.tensor([1.0, 1.0, 1.0, 1.0], dtype=torch.float64))
    gram[0, 1] = gram[1, 0] = 1.05  # indefinite
    hessian = Hessian(gram, 1e-3)
    assert hessian.upper_factor.isfinite().all()
    assert hessian.damping == pytest.approx(0.1)
    gram[0, 1] = gram[1, 0] = 3.0
    with pytest.raises(mfac.NotPositiveDefiniteError, match="positive definite at a damping of 1"):
        _ = Hessian(gram, 1e-3).upper_factor


@pytest.mark.parametrize("columns", [1, 200, 513, 900])
def test_a_factor_by_panels_is_that_of_lapack(columns: int) -> None:
    hessian, _ = correlated(1, columns, seed=columns)
    hessian[:, columns // 3] = hessian[columns // 3] = 0  # dead
    found = Hessian(hessian, mfac.relative(0.01)) if columns > 1 else Hessian(hessian + 1)
    matrix = found.matrix
    factor = found.upper_factor
    assert torch.equal(factor, factor.triu()) and bool((factor.diagonal() > 0).all())
    torch.testing.assert_close(factor @ factor.T, matrix, rtol=1e-12, atol=1e-12)
    if columns > 2:  # each entry of the upper triangle counts, in whichever panel it lies
        for row in (0, columns - 2):
            broken = matrix.clone()
            broken[row, row + 1] = broken[row + 1, row] = 2 * float(matrix.diagonal().max())
            assert upper_cholesky(broken, broken.diagonal()) is None
    assert upper_cholesky(torch.empty(0, 0, dtype=torch.float64), torch.empty(0, dtype=torch.float64)) is not None


def test_highest_is_exact_where_scores_are_equal() -> None:
    scores = torch.tensor([1.0, 0.0, 1.0, 1.0, 2.0, 1.0])
    assert highest(scores, 3).tolist() == [False, False, False, True, True, True]
    assert highest(scores, 0).sum() == 0
    assert highest(scores, 6).all()


@pytest.mark.parametrize("kind", ["random", "sorted", "equal", "steps", "infinite", "waves"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_kth_of_many_is_exact(kind: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    n = 100_003
    flat = {
        "random": torch.randn(n),
        "sorted": torch.arange(n).flip(0),
        "equal": torch.ones(n),
        "steps": torch.randint(0, 5, (n,)),
        "infinite": torch.where(torch.rand(n) < 0.3, torch.inf, torch.randn(n)),
        "waves": (torch.arange(n) % 24).float() * 1e3 + torch.rand(n),  # as the sample's stride
    }[kind].to(dtype)
    for count in (1, 2, 17, n // 10, n // 2, n - n // 20, n - 1, n):
        assert kth_lowest(flat, count) == flat.kthvalue(count).values
        assert int(lowest(flat, count).sum()) == count


def test_a_mask_that_is_given_is_swept() -> None:
    gram, weight = correlated(8, 200, 5)
    hessian = Hessian(gram)
    kept = torch.rand(8, 200, generator=torch.Generator().manual_seed(1)) < 0.5
    found = sweep(hessian, weight, _pattern("unstructured", 8, 200, 0.5), None, kept)
    assert torch.equal(found.kept, kept)
    wanted, _ = published_sweep(weight, hessian.matrix, kept)
    torch.testing.assert_close(found.weight, wanted, rtol=1e-10, atol=1e-10)


def test_errors_name_what_is_wrong() -> None:
    weight = torch.ones(2, 4)
    with pytest.raises(ValueError, match=r"`method` should be .*Did you mean 'alps'"):
        mfac.solve_layer(torch.eye(4), weight, method="alp")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`hessian` should be 4 x 4"):
        mfac.solve_layer(torch.eye(3), weight)
    with pytest.raises(ValueError, match="`hessian` should be finite"):
        mfac.solve_layer(torch.full((4, 4), float("nan")), weight)
    with pytest.raises(ValueError, match="`sparsity`"):
        mfac.solve_layer(torch.eye(4), weight, sparsity=1.0)
    with pytest.raises(ValueError, match="`bits` should be from 1 to 8"):
        mfac.Grid(bits=9)
    with pytest.raises(TypeError, match="should return a LayerSolution"):
        mfac.solve_layer(torch.eye(4), weight, method=lambda *_: weight)  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize(("outputs", "inputs"), [(1, 3), (2, 2), (3, 4)])
def test_blocks_go_greedily(outputs: int, inputs: int) -> None:
    rows, columns = 5, 10
    gram, weight = correlated(rows, columns, 6)
    hessian = Hessian(gram)
    order, losses = block_order(hessian, weight, outputs, inputs, columns)
    members = [list(range(begin, min(begin + inputs, columns))) for begin in range(0, columns, inputs)]
    for band, steps in enumerate(order):
        part = weight[band * outputs : (band + 1) * outputs]
        kept = torch.ones_like(part, dtype=torch.bool)
        last = 0.0
        for step, block in enumerate(steps.tolist()):
            tried = {}
            for other in steps.tolist()[step:]:
                mask = kept.clone()
                mask[:, members[other]] = False
                delta = best_on(part, hessian.matrix, mask) - part
                tried[other] = float((delta @ hessian.matrix * delta).sum())
            assert tried[block] == pytest.approx(min(tried.values()), rel=1e-9)
            assert float(losses[band, step]) == pytest.approx(tried[block] - last, rel=1e-6, abs=1e-9)
            last = tried[block]
            kept[:, members[block]] = False


@pytest.mark.parametrize("text", ["unstructured", "2:4"])
@pytest.mark.parametrize("method", ["magnitude", "sparsegpt", "alps"])
def test_swaps_only_lower_the_error(text: str, method: str) -> None:
    gram, weight = correlated(16, 64, 7)
    hessian = Hessian(gram)
    pattern = _pattern(text, 16, 64, 0.6)
    kept = SOLVERS[method](hessian, weight, pattern, None).kept
    found = swapped(hessian, weight, kept, pattern)
    before = hessian.relative_error(weight, best_on(weight, hessian.matrix, kept))
    after = hessian.relative_error(weight, found.weight)
    assert torch.equal(found.kept.sum(1), kept.sum(1))
    if text == "2:4":
        assert (found.kept.view(-1, 4).sum(1) == 2).all()
    torch.testing.assert_close(found.weight, best_on(weight, hessian.matrix, found.kept), rtol=1e-8, atol=1e-9)
    assert after <= before * (1 + 1e-6)
    if method == "magnitude":
        assert after < 0.8 * before
