"""Values of the pruner's operators: saliencies against float64, N:M masks against plain Python."""

import math

import pytest
import torch
from rounding import U
from samplers import normal
from torch import Tensor

from mfac.core import ops

F32, F64 = torch.float32, torch.float64
SIZES = (1, 3, 4, 5, 31, 32, 33, 257, 1000, 2049)
LONG = 20_001  # several tasks of the CPU, several blocks of a GPU
AXES = (1, 2, 3, 5, 31, 32, 33, 100, 1000)
PATTERNS = ((1, 2), (2, 4), (4, 8), (1, 3), (5, 7), (3, 32), (33, 64), (64, 64), (0, 4))

every_dtype = pytest.mark.parametrize("dtype", [F32, F64], ids=str)


every_diagonal = pytest.mark.parametrize("diagonal_dtype", [F32, F64], ids=str)


@pytest.mark.parametrize("dim", (*SIZES, LONG))
@every_dtype
@every_diagonal
def test_obs_saliency_values(dim: int, dtype: torch.dtype, diagonal_dtype: torch.dtype):
    w, diagonal = normal(dim + 1, dtype=dtype), (normal(dim + 1, seed=1).abs() + 1e-3).to(diagonal_dtype)
    for start in (0, 1):  # at a packet of a GPU's or not
        found = ops.obs_saliency(w[start : start + dim], diagonal[start : start + dim])
        expected = w[start : start + dim].double().square() / (2 * diagonal[start : start + dim].double())
        assert found.dtype == F64
        # A product and a quotient, each rounded once, and the compiler's own way of dividing on
        # either side.
        torch.testing.assert_close(found, expected, rtol=4 * U[F64], atol=0)


@every_dtype
def test_obs_saliency_values_at_the_ends(dtype: torch.dtype):
    w = torch.tensor([0.0, -0.0, 1e-30, -1e30, math.inf, math.nan, 1.0, 1.0], dtype=dtype)
    diagonal = torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0, 1.0, math.inf, math.nan], dtype=F64)
    found = ops.obs_saliency(w, diagonal)
    wide = w.double()  # 1e-30 squared is no float32
    torch.testing.assert_close(found, wide * wide / (2 * diagonal), rtol=4 * U[F64], atol=0, equal_nan=True)
    assert float(found[2]) > 0 and math.isfinite(float(found[3]))


def kept(scores: list[float], keep: int) -> list[bool]:
    """The rule for one group: ascending, NaN last, ties by index; all but the last `keep` go."""
    order = sorted(range(len(scores)), key=lambda i: (math.isnan(scores[i]), 0 if math.isnan(scores[i]) else scores[i]))
    chosen = set(order[len(scores) - min(keep, len(scores)) :])
    return [i in chosen for i in range(len(scores))]


def assert_mask_is_right(scores: Tensor, keep: int, group: int) -> None:
    before = scores.clone()
    mask = ops.nm_mask(scores, keep, group)
    assert mask.dtype == torch.bool and mask.shape == scores.shape and mask.is_contiguous()
    columns, expected = scores.transpose(1, 2).flatten(0, 1).tolist(), []
    for column in columns:
        groups = [column[start : start + group] for start in range(0, len(column), group)]
        expected.append([choice for one in groups for choice in kept(one, keep)])
    outer, axis, inner = scores.shape
    wanted = torch.tensor(expected, dtype=torch.bool).view(outer, inner, axis).transpose(1, 2)
    assert torch.equal(mask, wanted)
    assert torch.equal(scores.nan_to_num(7.0), before.nan_to_num(7.0))


@pytest.mark.parametrize("axis", AXES)
@every_dtype
def test_nm_mask_values(axis: int, dtype: torch.dtype):
    for number, (keep, group) in enumerate(PATTERNS):
        for outer, inner in ((3, 1), (1, 9), (2, 33)) if axis < 1000 else ((2, 1),):
            assert_mask_is_right(normal(outer, axis, inner, seed=number, dtype=dtype), keep, group)


@every_dtype
def test_nm_mask_values_of_long_rows_and_of_many(dtype: torch.dtype):
    for shape in ((1, 5, 2049), (1, 64, 300), (700, 3, 1), (1, 1, 5000), (5000, 1, 1)):
        for keep, group in ((2, 4), (33, 64)):
            assert_mask_is_right(normal(*shape, dtype=dtype), keep, group)


@every_dtype
def test_nm_mask_values_of_equal_scores(dtype: torch.dtype):
    for draw in range(4):  # few different values: at 0 one alone
        scores = normal(3, 33, 5, seed=draw, dtype=dtype).mul(draw).round()
        for keep, group in PATTERNS:
            assert_mask_is_right(scores, keep, group)
    signed = torch.tensor([0.0, -0.0, 0.0, -0.0], dtype=dtype)  # all equal
    assert ops.nm_mask(signed.view(1, 4, 1), 2, 4).flatten().tolist() == [False, False, True, True]
    assert ops.nm_mask(-signed.view(1, 4, 1), 2, 4).flatten().tolist() == [False, False, True, True]


@every_dtype
def test_nm_mask_values_that_are_not_finite(dtype: torch.dtype):
    odd = torch.tensor([math.nan, -math.nan, math.inf, -math.inf, 0.0, 1.0], dtype=dtype)
    generator = torch.Generator().manual_seed(0)
    for inner in (1, 9):
        scores = odd[torch.randint(6, (4, 33, inner), generator=generator)]
        for keep, group in PATTERNS:
            assert_mask_is_right(scores, keep, group)


@every_dtype
def test_nm_mask_values_next_to_each_other(dtype: torch.dtype):
    one = torch.ones((), dtype=dtype)
    near = torch.stack([one, torch.nextafter(one, 2 * one), -one, torch.nextafter(-one, -2 * one)])
    tiny = torch.finfo(dtype).smallest_normal / 4  # subnormal
    for scores in (near, near * tiny, torch.stack([tiny * one, 0 * one, -tiny * one, 2 * tiny * one])):
        for turn in range(4):
            for keep in (1, 2, 3):
                assert_mask_is_right(scores.roll(turn).view(1, 4, 1).contiguous(), keep, 4)


@pytest.mark.parametrize("shape", [(0, 4, 3), (3, 0, 2), (2, 4, 0)])
def test_nm_mask_of_nothing_is_empty(shape: tuple[int, int, int]):
    assert ops.nm_mask(torch.empty(shape), 2, 4).shape == shape
    assert ops.obs_saliency(torch.empty(0), torch.empty(0, dtype=F64)).shape == (0,)
