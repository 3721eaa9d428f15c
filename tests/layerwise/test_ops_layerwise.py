"""Values of the layerwise operators against the published loops, dense and in float64."""

import math

import pytest
import torch
from samplers import normal, strided
from torch import Tensor

from mfac.core import cuda_ops, ops

F64 = torch.float64
# Both sides are backward stable sweeps through matrices of condition below 100 (`hessian`): their
# errors are a few n·u·κ, some 1e-12.
TOLERANCE = 1e-10
WIDTHS = (1, 2, 3, 7, 8, 9, 31, 33, 64, 65, 128, 200)
ROWS = (1, 3, 4, 5, 12, 17, 33)
PATTERNS = ((2, 4), (1, 2), (4, 8), (3, 7), (5, 5), (1, 64), (33, 64))


def hessian(n: int, seed: int = 0) -> Tensor:
    """Inputs that are related, damped: eigenvalues from 1/20 to about 4."""
    x = normal(2 * n + 3, n, seed=seed) @ (torch.eye(n, dtype=F64) + 0.3 * normal(n, n, seed=seed + 1) / math.sqrt(n))
    return x.T @ x / (2 * n + 3) + 0.05 * torch.eye(n, dtype=F64)


def upper_factor(H: Tensor) -> Tensor:
    """R of H = R Rᵀ, upper triangular."""
    return torch.linalg.cholesky(H.flip(0, 1)).flip(0, 1).contiguous()


def rise(H: Tensor, change: Tensor) -> Tensor:
    """δHδᵀ of every row."""
    return ((change @ H) * change).sum(1)


def on_grid(x: Tensor, scale: Tensor, zero: Tensor, levels: int) -> Tensor:
    return ((torch.round(x / scale) + zero).clamp(0, levels) - zero) * scale


def grid(rows: int, *columns: int) -> tuple[Tensor, Tensor]:
    """Scales and zeros; some weights lie beyond the grid."""
    scales = 0.25 + normal(rows, *columns, seed=7).abs() / 4
    return scales, normal(rows, *columns, seed=8).round() + 3


def highest(scores: Tensor, keep: int) -> Tensor:
    """Which of each row are the `keep` highest; of equal ones the later."""
    order = scores.argsort(dim=1, stable=True)
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, order[:, max(0, scores.shape[1] - keep) :], True)


def swept(
    W: Tensor, H: Tensor, kept: Tensor, keep: int, group: int, scales: Tensor | None, zeros: Tensor | None, levels: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The published loop: columns in turn, and each error moves all later columns at once.

    Q, the errors e of all columns and the mask. Groups are chosen by their own conditional optimum,
    which is what the moved weights are.
    """
    U = torch.linalg.cholesky(torch.linalg.inv(H), upper=True)
    W, kept, Q, errors = W.clone(), kept.clone(), torch.zeros_like(W), torch.zeros_like(W)
    for j in range(W.shape[1]):
        if keep > 0 and j % group == 0:
            columns = slice(j, min(j + group, W.shape[1]))
            kept[:, columns] = highest((W[:, columns] / U.diag()[columns]).square(), keep)
        w = W[:, j].clone()
        q = w if scales is None else on_grid(w, scales, zeros, levels)
        Q[:, j] = torch.where(kept[:, j], q, 0)
        errors[:, j] = (w - Q[:, j]) / U[j, j]
        W[:, j:] -= errors[:, j, None] * U[j, j:]
    return Q, errors, kept


def sweep_in_blocks(W: Tensor, R: Tensor, kept: Tensor, width: int, *settings: object) -> tuple[Tensor, Tensor, Tensor]:
    """The operator over all blocks of columns, each a slice of the whole matrices."""
    Q, kept, errors = strided(W), kept.clone(), torch.empty_like(W)
    for begin in range(0, W.shape[1], width):
        block = slice(begin, begin + width)
        carried = ((W - Q)[:, :begin] @ R[:begin, block]).contiguous()
        ops.obs_sweep_(Q[:, block], carried, R[block, block], kept[:, block], *settings)
        errors[:, block] = carried
    return Q, errors, kept


def assert_sweep_is_right(rows: int, n: int, width: int, keep: int = 0, group: int = 1, levels: int = 0) -> None:
    W, H = normal(rows, n, seed=n), hessian(n)
    R = upper_factor(H)
    kept = normal(rows, n, seed=5) > 0 if keep == 0 else torch.zeros(rows, n, dtype=torch.bool)
    scales, zeros = grid(rows) if levels else (None, None)
    Q, errors, mask = sweep_in_blocks(W, R, kept, width, keep, group, scales, zeros, levels)
    expected_Q, expected_errors, expected_mask = swept(W, H, kept, keep, group, scales, zeros, levels)
    assert torch.equal(mask, expected_mask)
    torch.testing.assert_close(Q, expected_Q, rtol=TOLERANCE, atol=TOLERANCE)
    torch.testing.assert_close(errors, expected_errors, rtol=TOLERANCE, atol=TOLERANCE)
    torch.testing.assert_close(errors.square().sum(1), rise(H, W - Q), rtol=TOLERANCE, atol=TOLERANCE)
    assert (Q[~mask] == 0).all()
    if not levels:
        assert (errors[mask] == 0).all()


@pytest.mark.parametrize("width", WIDTHS)
def test_obs_sweep_values_of_a_given_mask(width: int):
    for rows in ROWS:
        assert_sweep_is_right(rows, width, width)


@pytest.mark.parametrize("width", WIDTHS)
def test_obs_sweep_values_with_a_grid(width: int):
    for rows in (1, 5, 33):
        assert_sweep_is_right(rows, width, width, levels=15)


@pytest.mark.parametrize(("keep", "group"), PATTERNS)
def test_obs_sweep_values_of_chosen_groups(keep: int, group: int):
    for rows, width in ((1, 1), (5, 3), (33, 64), (17, 65), (3, 130)):
        assert_sweep_is_right(rows, width, width, keep, group)
        assert_sweep_is_right(rows, width, width, keep, group, levels=7)


@pytest.mark.parametrize("width", [1, 8, 24, 40, 100])
def test_obs_sweep_values_of_several_blocks(width: int):
    assert_sweep_is_right(13, 99, width)
    assert_sweep_is_right(13, 99, width, levels=15)
    if width % 8 == 0:  # groups that no block cuts
        assert_sweep_is_right(13, 99, width, 2, 4)
        assert_sweep_is_right(13, 99, width, 3, 8, levels=15)


def test_obs_sweep_values_of_equal_scores():
    H = torch.eye(8, dtype=F64)
    W = torch.tensor([[1.0, -1, 1, 1, 0, 0, 0, 0]], dtype=F64)
    kept = torch.zeros(1, 8, dtype=torch.bool)
    ops.obs_sweep_(W, torch.zeros_like(W), H, kept, 2, 4)
    assert kept.tolist() == [[False, False, True, True] * 2]


def test_obs_sweep_values_of_a_grid_without_curvature_are_rounded_weights():
    W, scales, zeros = normal(9, 33), *grid(9)
    Q, errors = W.clone(), torch.zeros_like(W)
    ops.obs_sweep_(Q, errors, torch.eye(33, dtype=F64), W.isfinite(), 0, 1, scales, zeros, 15)
    assert torch.equal(Q, on_grid(W, scales[:, None], zeros[:, None], 15))
    torch.testing.assert_close(errors, W - Q, rtol=0, atol=1e-15)
    halves = torch.tensor([[0.5, 1.5, 2.5, -0.5]], dtype=F64)  # ties go to even levels
    ones = torch.ones(1, dtype=F64)
    ops.obs_sweep_(halves, torch.zeros_like(halves), torch.eye(4, dtype=F64), halves > -1, 0, 1, ones, ones, 15)
    assert halves.tolist() == [[0, 2, 2, 0]]


def eliminated(
    w: Tensor,
    inverse: Tensor,
    dropped: Tensor,
    count: int,
    keep: int,
    group: int,
    scales: Tensor | None,
    zeros: Tensor | None,
    levels: int,
) -> tuple[list[int], list[float], Tensor]:
    """One row by the definition."""
    w, A, left, n = w.clone(), inverse.clone(), torch.ones_like(dropped), len(w)
    group_of = torch.arange(n) // group
    order: list[int] = []
    losses: list[float] = []

    def values() -> Tensor:
        return torch.zeros_like(w) if scales is None else on_grid(w, scales, zeros, levels)

    def drive(p: int, q: float) -> None:
        nonlocal w, A
        w = w - A[:, p] * ((w[p] - q) / A[p, p])
        A = A - torch.outer(A[:, p], A[p]) / A[p, p]
        w[p], A[p], A[:, p], left[p] = q, 0.0, 0.0, False

    for p in dropped.nonzero().flatten().tolist():
        drive(p, 0.0)
    for _ in range(count):
        off = w - values()
        may_go = left & (torch.bincount(group_of[left], minlength=n)[group_of] > keep if keep > 0 else left)
        if scales is not None and bool((outside := may_go & (off.abs() > scales * 0.500001)).any()):
            may_go = outside
        scores = torch.where(may_go, off.square() / A.diag(), math.inf)
        loss, p = scores.min(0).values, int((scores == scores.min()).nonzero()[0])
        order.append(p if bool(may_go.any()) else -1)
        losses.append(float(loss))
        if bool(may_go.any()):
            drive(p, float(values()[p]))
    return order, losses, w


def assert_elimination_is_right(
    rows: int, n: int, count: int, keep: int = 0, group: int = 1, levels: int = 0, share_dropped: float = 0.0
) -> None:
    W, H = normal(rows, n, seed=n), hessian(n)
    inverse = torch.linalg.inv(H)
    inverse = strided((inverse + inverse.T) / 2)
    dropped = torch.rand(rows, n, generator=torch.Generator().manual_seed(n)) < share_dropped
    W = strided(torch.where(dropped, 0, W))
    grids = grid(rows, n) if levels else (None, None)
    order, losses, result = ops.obs_eliminate(W, inverse, dropped, count, keep, group, *grids, levels)
    assert order.dtype == torch.int64 and losses.dtype == result.dtype == F64
    for row in range(rows):
        own = (g if g is None else g[row] for g in grids)
        expected = eliminated(W[row], inverse, dropped[row], count, keep, group, *own, levels)
        assert order[row].tolist() == expected[0]
        torch.testing.assert_close(losses[row], torch.tensor(expected[1], dtype=F64), rtol=TOLERANCE, atol=TOLERANCE)
        torch.testing.assert_close(result[row], expected[2], rtol=TOLERANCE, atol=TOLERANCE)
    assert (result[dropped] == 0).all()
    if not levels and not share_dropped:
        gone = torch.zeros(rows, n + 1, dtype=torch.bool).scatter_(1, order % (n + 1), True)[:, :n]
        assert (result[gone] == 0).all()
        raised = losses.where(losses.isfinite(), 0).sum(1)
        torch.testing.assert_close(raised, rise(H, result - W), rtol=TOLERANCE, atol=TOLERANCE)


SIZES = (1, 2, 3, 5, 8, 13, 16, 17, 31, 33, 40, 65, 100)


@pytest.mark.parametrize("n", SIZES)
def test_obs_eliminate_values(n: int):
    for count in sorted({0, 1, n // 2, n - 1, n}):
        assert_elimination_is_right(3, n, count)


@pytest.mark.parametrize("n", [5, 33, 70, 131])
def test_obs_eliminate_values_after_what_is_dropped(n: int):
    for share in (0.2, 0.7, 1.0):
        for keep, group in ((0, 1), (2, 4)):
            assert_elimination_is_right(3, n, n, keep, group, share_dropped=share)
    assert_elimination_is_right(3, n, n // 3, levels=15, share_dropped=0.4)


@pytest.mark.parametrize(("keep", "group"), [*PATTERNS, (1, 1), (60, 131)])
def test_obs_eliminate_values_of_groups(keep: int, group: int):
    for n in (1, 6, 64, 131):
        for count in (n // 3, n):
            assert_elimination_is_right(2, n, count, keep, group)


@pytest.mark.parametrize("n", SIZES)
def test_obs_eliminate_values_with_a_grid(n: int):
    for levels in (1, 3, 255):
        assert_elimination_is_right(2, n, n, levels=levels)
    assert_elimination_is_right(2, n, n // 2, levels=15)


def test_obs_eliminate_values_of_a_long_row():
    assert_elimination_is_right(1, 300, 300)
    assert_elimination_is_right(1, 257, 200, 2, 4)


def test_obs_eliminate_values_of_equal_scores():
    W = torch.tensor([[1.0, -1, 0.5, 1, 0.5]], dtype=F64)
    dropped = torch.zeros(1, 5, dtype=torch.bool)
    order, losses, result = ops.obs_eliminate(W, torch.eye(5, dtype=F64), dropped, 4, 0, 1)
    assert order.tolist() == [[2, 4, 0, 1]] and losses.tolist() == [[0.25, 0.25, 1, 1]]
    assert result.tolist() == [[0, 0, 0, 1, 0]]


def test_obs_eliminate_values_of_a_grid_without_curvature_are_rounded_weights():
    W, (scales, zeros), n = normal(9, 33), grid(9, 33), 33
    order, losses, result = ops.obs_eliminate(W, torch.eye(n, dtype=F64), W.isnan(), n, 0, 1, scales, zeros, 7)
    assert torch.equal(result, on_grid(W, scales, zeros, 7))
    errors = (W - result).square()
    assert torch.equal(losses, errors.gather(1, order))
    for row in range(9):  # what lies beyond the grid, and then the rest, each in the order of its errors
        outside = (W - result)[row].abs() > scales[row] * 0.500001
        split = int(outside.sum())
        assert bool(outside[order[row, :split]].all())
        assert bool((losses[row, :split].diff() >= 0).all()) and bool((losses[row, split:].diff() >= 0).all())


@pytest.mark.parametrize(("rows", "n"), [(0, 5), (3, 0), (0, 0)])
def test_layerwise_values_of_nothing_are_empty(rows: int, n: int):
    W, square, mask = torch.zeros(rows, n, dtype=F64), torch.eye(n, dtype=F64), torch.zeros(rows, n, dtype=torch.bool)
    ops.obs_sweep_(W, W.clone(), square, mask, 2, 4)
    order, losses, result = ops.obs_eliminate(W, square, mask, n, 0, 1)
    assert order.shape == losses.shape == result.shape == (rows, n)


@pytest.mark.parametrize(("rows", "columns", "share"), [(0, 4, 0.5), (3, 1, 1.0), (5, 40, 0.3), (9, 130, 0.8)])
def test_restricted_solve(rows: int, columns: int, share: float) -> None:
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(2 * columns + 8, columns, dtype=torch.float64, generator=generator)
    matrix = x.T @ x / len(x) + 0.1 * torch.eye(columns, dtype=torch.float64)
    target = torch.randn(rows, columns, dtype=torch.float64, generator=generator)
    kept = torch.rand(rows, columns, generator=generator) < share
    if rows > 2:
        kept[0], kept[1] = False, True
    wanted = torch.zeros_like(target)
    for row in range(rows):
        mask = kept[row]
        wanted[row, mask] = torch.linalg.solve(matrix[mask][:, mask], target[row, mask])
    for found in (ops.restricted_solve(matrix, target, kept), cuda_ops.restricted_solve(matrix, target, kept)):
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)
    if columns > 4:
        matrix[2, 2] = -1.0
        for found in (ops.restricted_solve(matrix, target, kept), cuda_ops.restricted_solve(matrix, target, kept)):
            assert torch.equal(found.isnan(), kept & kept[:, 2:3])
