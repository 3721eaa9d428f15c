"""Values of the operators on symmetric m x m matrices, of which only the lower triangle counts."""

import pytest
import torch
from rounding import U, relative_error
from samplers import normal, window

from mfac.core import ops

SIZES = (1, 2, 3, 7, 8, 9, 16, 17, 31, 33, 63, 64, 65, 70, 128, 130, 257)
IN_PARTS = (600, 1100)  # several parts, each a task
F64 = torch.float64


def lower_only(matrix: torch.Tensor) -> torch.Tensor:
    """The lower triangle, with NaN above it."""
    above = torch.ones_like(matrix, dtype=torch.bool).triu(1)
    return matrix.masked_fill(above, float("nan"))


def symmetric(lower: torch.Tensor) -> torch.Tensor:
    return lower.tril() + lower.tril(-1).T


def problem(size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, float]:
    """A Gram matrix, its inverse capacitance, a new row's products, the shift; condition <= 20."""
    rows = window(size + 1, 4 * size + 3, norm=2.0)  # ‖G‖² <= 4·(1 + 1/2)² of such a shape is 9, and the shift 0.5
    gram = rows[:size] @ rows[:size].T
    shift = 0.5
    inverse = torch.linalg.inv(gram + shift * torch.eye(size, dtype=F64)).contiguous()
    return gram, inverse, rows[:size] @ rows[size], shift


@pytest.mark.parametrize("size", SIZES + IN_PARTS)
def test_capacitance_replace_values(size: int):
    gram, inverse, products, shift = problem(size)
    for row in sorted({0, size // 2, size - 1} if size < 100 else {size // 2}):
        new = products.clone()
        new[row] = 4.0  # the squared norm of the new row, which the other products belong to
        lower_gram, lower_inverse = lower_only(gram), lower_only(inverse)
        pivot = ops.capacitance_replace_(lower_inverse, lower_gram, row, new, shift)

        expected_gram = gram.clone()
        expected_gram[row] = expected_gram[:, row] = new
        assert torch.equal(lower_gram.tril().nan_to_num(), expected_gram.tril())
        capacitance = expected_gram + shift * torch.eye(size, dtype=F64)
        expected = torch.linalg.inv(capacitance)
        # Two rank-one steps and the reference's own inverses: each has an error of about m·u·κ
        # relative to its result, and κ <= 20 before and after. An error of the first step is
        # amplified by at most κ in the second.
        bound = 4 * size * U[F64] * 20**2
        assert relative_error(symmetric(lower_inverse), expected) <= bound
        assert float(pivot) == pytest.approx(1 / float(expected[row, row]), rel=bound)
        assert bool(lower_inverse[0, 1:].isnan().all()) and bool(lower_gram[0, 1:].isnan().all())  # no write above


def test_capacitance_replace_with_nothing_takes_a_row_out():
    gram, inverse, products, shift = problem(9)
    pivot = ops.capacitance_replace_(inverse, gram, 4, torch.zeros_like(products), shift)
    kept = [0, 1, 2, 3, 5, 6, 7, 8]
    assert torch.equal(pivot, torch.tensor([shift], dtype=F64))
    assert torch.equal(inverse[4, 4], torch.tensor(1 / shift, dtype=F64))
    assert not inverse[4, :4].any() and not inverse[5:, 4].any()
    rest = symmetric(gram)[kept][:, kept] + shift * torch.eye(8, dtype=F64)
    assert relative_error(symmetric(inverse)[kept][:, kept], torch.linalg.inv(rest)) <= 4 * 9 * U[F64] * 20**2


def test_capacitance_replace_reports_a_pivot_below_the_shift_and_divides_by_the_shift():
    # No Gram matrix has products beyond the norms' product: the pivot is 1 + shift - 9/(1 + shift),
    # negative, and the inverse stays finite because the division is by the shift.
    gram, shift = torch.eye(2, dtype=F64), 0.5
    inverse = torch.eye(2, dtype=F64) / 1.5
    pivot = ops.capacitance_replace_(inverse, gram, 1, torch.tensor([3.0, 1.0], dtype=F64), shift)
    assert float(pivot) == pytest.approx(1.5 - 9 / 1.5, rel=4 * U[F64])
    assert torch.equal(inverse[1, 1], torch.tensor(1 / shift, dtype=F64))


@pytest.mark.parametrize("size", [9, 130])
def test_capacitance_replace_with_the_products_of_a_row_of_zeros(size: int):
    gram, inverse, _, shift = problem(size)
    row = size // 2
    ops.capacitance_replace_(inverse, gram, row, torch.zeros(size, dtype=F64), shift)
    for matrix, diagonal in ((gram, 0.0), (inverse, 1 / shift)):
        assert not matrix[row, :row].any() and not matrix[row + 1 :, row].any()
        assert float(matrix[row, row]) == diagonal


@pytest.mark.parametrize("size", SIZES + IN_PARTS)
def test_capacitance_solve_values(size: int):
    gram, inverse, _, shift = problem(size)
    capacitance, b = gram + shift * torch.eye(size, dtype=F64), normal(2, size)
    rounding = 2 * (size + 4) * U[F64]  # of a residual, which is a sum of m + 2 terms, here and there
    for off in (0.0, 1e-5):  # each refinement takes off a factor of about 1e-5
        found, error = ops.capacitance_solve(lower_only(inverse * (1 + off)), lower_only(gram), b, shift)
        assert 0 <= float(error) <= rounding
        residuals = (b - found @ capacitance).norm(dim=1)
        assert bool((residuals <= rounding * (10 * found.norm(dim=1) + b.norm(dim=1))).all())  # ‖C‖ <= 9.5
    product, error = ops.capacitance_solve(lower_only(inverse), lower_only(torch.zeros_like(gram)), b, 0.0)
    assert float(error) == 1 and not product.any()  # C = 0: no product is better than none


def test_capacitance_solve_values_of_an_inverse_that_is_none():
    gram, inverse, _, shift = problem(9)
    for wrong in (torch.zeros_like(inverse), torch.full_like(inverse, float("nan"))):
        found, error = ops.capacitance_solve(wrong, gram, normal(1, 9), shift)
        assert float(error) == 1 and not found.any()
    found, error = ops.capacitance_solve(inverse, gram, torch.zeros(3, 9, dtype=F64), shift)
    assert float(error) == 0 and not found.any()
    assert ops.capacitance_solve(inverse, gram, torch.zeros(0, 9, dtype=F64), shift)[0].shape == (0, 9)


@pytest.mark.parametrize("size", [3, 70])
def test_capacitance_solve_of_many_vectors_is_that_of_each(size: int):
    gram, inverse, _, shift = problem(size)
    inverse[0, 0] *= 1.001  # off for what has a part along the first axis: the less of it, the fewer refinements
    b = normal(35, size)
    b[:, 0] *= torch.logspace(-17, 0, 35)
    found, error = ops.capacitance_solve(inverse, gram, b, shift)
    alone = [ops.capacitance_solve(inverse, gram, vector[None].contiguous(), shift) for vector in b]
    assert torch.equal(found, torch.cat([solution for solution, _ in alone]))
    assert float(error) == max(float(largest) for _, largest in alone)
