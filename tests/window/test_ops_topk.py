"""Values of windows of sparse rows: the entries `topk_push_` keeps, its remainder, products."""

import os

import pytest
import torch
from device import DEVICE
from rounding import assert_sums_agree
from samplers import normal
from torch import Tensor

from mfac.core import ops

F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16
DTYPES = [(F32, F32), (F64, F64), (BF16, F32), (F16, F32), (F32, F64), (BF16, F64), (F16, F64), (F64, F32)]

# (d, block size, kept): one block; last blocks as wide, narrower, of one column and narrower than
# `kept`; all kept.
LAYOUTS = [
    (1, 1, 1),
    (7, 7, 3),
    (21, 7, 1),
    (23, 7, 3),
    (22, 7, 3),
    (16, 7, 5),
    (40, 13, 13),
    (1000, 1000, 10),
    (5001, 1667, 17),
    (65_537, 65_536, 100),
]


class Sparse:
    """A window of sparse rows, and the same made with dense sorts."""

    def __init__(self, rank: int, layout: tuple[int, int, int], dtype: torch.dtype, vector_dtype: torch.dtype) -> None:
        self.dim, self.block_size, self.kept = layout
        shape = (rank, -(-self.dim // self.block_size), self.kept)
        self.values = torch.zeros(shape, dtype=dtype)
        self.indices = torch.zeros(shape, dtype=torch.uint16)
        self.error = torch.zeros(self.dim, dtype=vector_dtype)
        self.boundaries = torch.zeros(shape[1], -(-self.block_size // 1024) - 1, rank, dtype=torch.uint16)

    def push(self, row: int, g: Tensor) -> Tensor:
        return ops.topk_push_(self.values, self.indices, self.error, row, g, self.block_size, self.boundaries)

    def combine_(self, out: Tensor, coefficients: Tensor, alpha: float, beta: float) -> Tensor:
        """`topk_combine_` with the boundaries, and the same bits without."""
        without = out.clone()
        ops.topk_combine_(without, self.values, self.indices, coefficients, alpha, beta, self.block_size)
        arguments = (self.values, self.indices, coefficients, alpha, beta, self.block_size, self.boundaries)
        assert torch.equal(ops.topk_combine_(out, *arguments), without)
        return out

    def boundaries_of(self, row: int) -> Tensor:
        """Entries of a row before each tile of 1024 columns but the first, [blocks, tiles - 1]."""
        found = torch.zeros(self.boundaries.shape[:2], dtype=torch.int64)
        for b in range(found.shape[0]):
            columns = self.indices[row, b].long()[: self.dim - b * self.block_size]
            for tile in range(found.shape[1]):
                found[b, tile] = (columns < 1024 * (tile + 1)).sum()
        return found

    def dense(self) -> Tensor:
        """[m, d] float64."""
        rows = torch.zeros(self.values.shape[0], self.dim, dtype=F64)
        for b in range(self.values.shape[1]):
            part = rows[:, b * self.block_size : (b + 1) * self.block_size]
            part.scatter_add_(1, self.indices[:, b].long(), self.values[:, b].double())
        return rows

    def clone(self) -> list[Tensor]:
        return [tensor.clone() for tensor in self.tensors()]

    def tensors(self) -> list[Tensor]:
        return [self.values, self.indices, self.error, self.boundaries]


def largest(v: Tensor, block_size: int, kept: int) -> list[Tensor]:
    """Offsets of the largest entries of every block, ascending; of equal ones the first."""
    chosen = []
    for start in range(0, v.numel(), block_size):
        order = v[start : start + block_size].abs().sort(descending=True, stable=True).indices
        chosen.append(order[:kept].sort().values)
    return chosen


def assert_push_is_right(S: Sparse, row: int, g: Tensor) -> None:
    before, rest = S.clone(), [r for r in range(S.values.shape[0]) if r != row]
    carried = S.error + g  # one rounding, the library's too
    products = S.push(row, g)
    expected_error = carried.clone()
    for b, chosen in enumerate(largest(carried, S.block_size, S.kept)):
        assert torch.equal(S.indices[row, b].long()[: chosen.numel()], chosen)
        columns = b * S.block_size + chosen
        rounded = carried[columns].float() if S.values.dtype.itemsize == 2 else carried[columns]
        rounded = rounded.to(S.values.dtype)  # 16 bits by way of float32
        assert torch.equal(S.values[row, b][: chosen.numel()], rounded)
        assert not S.values[row, b][chosen.numel() :].any() and not S.indices[row, b].long()[chosen.numel() :].any()
        expected_error[columns] -= rounded.to(carried.dtype)
    assert torch.equal(S.error, expected_error)
    wide = S.dense()
    # Nothing is lost: the loss of rounding to fewer bits is a number of the wider format, so the
    # sum is exact.
    exactly = carried.double()
    if not (S.values.dtype == F32 and S.error.dtype == F64):
        assert torch.equal(wide[row] + S.error.double(), exactly)
    for found, kept in zip(S.tensors()[:2], before[:2], strict=True):
        assert all(torch.equal(found[r], kept[r]) for r in rest)
    assert torch.equal(S.boundaries[..., row].long(), S.boundaries_of(row))
    assert all(torch.equal(S.boundaries[..., r], before[3][..., r]) for r in rest)
    assert_sums_agree(products, wide @ wide[row], S.dim, wide.abs() @ wide[row].abs())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("dtype", "vector_dtype"), DTYPES)
def test_push_values(dtype: torch.dtype, vector_dtype: torch.dtype, layout: tuple[int, int, int]):
    for rank in (1, 3) if layout[0] < 10_000 else (2,):
        S = Sparse(rank, layout, dtype, vector_dtype)
        for i in range(2 * rank + 1):  # past wrap-around, the error carried along
            assert_push_is_right(S, i % rank, normal(S.dim, seed=i, dtype=vector_dtype))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_values_of_ties_go_to_the_first(layout: tuple[int, int, int]):
    for most in (0, 1, 3):  # zeros, then 1s and 0s, then few different magnitudes of either sign
        S = Sparse(2, layout, F32, F32)
        generator = torch.Generator().manual_seed(most)
        for i in range(4):
            g = torch.randint(-most, most + 1, (S.dim,), generator=generator).float()
            assert_push_is_right(S, i % 2, g)


def test_values_of_the_last_column_of_the_widest_block():
    S = Sparse(1, (65_537, 65_536, 2), F32, F32)
    g = torch.zeros(65_537)
    g[65_535], g[65_536], g[3] = 5.0, -7.0, 1.0
    S.push(0, g)
    assert S.indices[0].tolist() == [[3, 65_535], [0, 0]]
    assert S.values[0].tolist() == [[1.0, 5.0], [-7.0, 0.0]]
    assert not S.error.any()


@pytest.mark.parametrize("dtype", [BF16, F16])
def test_error_holds_the_loss_of_rounding_exactly(dtype: torch.dtype):
    # Subnormals of both formats, ties and all sizes in between.
    sizes = torch.logspace(-44 if dtype == BF16 else -12, 4, 3001, dtype=F64)
    g = (normal(3001, seed=1) * sizes).float()
    S = Sparse(1, (3001, 1001, 1001), dtype, F32)  # everything kept
    S.push(0, g)
    assert torch.equal(S.values[0].flatten()[:3001], g.to(dtype))
    assert torch.equal(S.error, g - g.to(dtype).float())
    assert torch.equal(S.dense()[0] + S.error.double(), g.double())


def test_nothing_is_lost_over_many_pushes():
    S = Sparse(4, (101, 34, 3), F32, F32)
    generator = torch.Generator().manual_seed(0)
    # Integers: all sums are exact, so that what went in is what came out and what is still there.
    total, out = torch.zeros(101, dtype=F64), torch.zeros(101, dtype=F64)
    for i in range(200):
        g = torch.randint(-9, 10, (101,), generator=generator).float()
        S.push(i % 4, g)
        total += g
        out += S.dense()[i % 4]
    assert torch.equal(out + S.error.double(), total)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("dtype", "vector_dtype"), DTYPES)
def test_dot_and_combine_values(dtype: torch.dtype, vector_dtype: torch.dtype, layout: tuple[int, int, int]):
    rank = 5
    S = Sparse(rank, layout, dtype, F32)
    for row in range(rank - 1):  # the last is empty
        S.push(row, normal(S.dim, seed=row, dtype=F32))
    wide = S.dense()
    for count in (1, 3):
        v = normal(count, S.dim + 5, seed=count, dtype=vector_dtype)[:, 2:-3]  # rows further apart than long
        found = ops.topk_dot(S.values, S.indices, v, S.block_size)
        assert found.dtype == F64
        assert_sums_agree(found, v.double() @ wide.T, S.dim, v.double().abs() @ wide.abs().T)

        c = normal(count, rank, seed=7)
        around = torch.full((count, S.dim + 5), 77.0, dtype=vector_dtype)
        for alpha, beta in ((0.5, -3.0), (0.0, 2.0)):
            out = around[:, 2:-3]
            out.copy_(normal(count, S.dim, seed=8, dtype=vector_dtype))
            expected = alpha * out.double() + beta * (c @ wide)
            absolute = alpha * out.double().abs() + abs(beta) * (c.abs() @ wide.abs())
            if alpha == 0:
                out.fill_(float("nan"))  # not read
            S.combine_(out, c, alpha, beta)
            assert_sums_agree(out, expected, rank + 2, absolute)  # and the products with alpha and beta
            assert bool((around[:, :2] == 77).all()) and bool((around[:, -3:] == 77).all())


def filled(rank: int, layout: tuple[int, int, int], dtype: torch.dtype, seed: int = 0) -> Sparse:
    """Rows with entries at random, the last of them never written."""
    S = Sparse(rank, layout, dtype, F32)
    generator = torch.Generator().manual_seed(seed)
    for b, cols in ((slice(0, -1), S.block_size), (slice(-1, None), S.dim - (S.values.shape[1] - 1) * S.block_size)):
        values, count = S.values[:-1, b], min(S.kept, cols)
        chosen = torch.rand(*values.shape[:2], cols, generator=generator).argsort()[..., :count].sort().values
        S.indices[:-1, b, :count] = chosen.to(torch.uint16)
        values[..., :count] = torch.randn(chosen.shape, generator=generator).to(dtype)
    for row in range(rank - 1):
        S.boundaries[..., row] = S.boundaries_of(row).to(torch.uint16)
    return S


# (rank, (d, block size, kept), dtype). Kernels on a GPU take four times 32 rows, then more; tiles
# of 1024 columns, with more entries of a row than a warp has lanes; and several rows a warp where
# there is work for thousands of blocks.
MANY = [
    (150, (2500, 2500, 300), BF16),
    (262, (1100, 1100, 5), F32),
    (5, (6000, 3000, 3000), F64),
    (2, (65_536, 65_536, 65_536), F32),
    (65, (912, 1, 1), F16),
]


@pytest.mark.parametrize(("rank", "layout", "dtype"), MANY)
def test_dot_and_combine_values_of_many_rows(rank: int, layout: tuple[int, int, int], dtype: torch.dtype):
    S = filled(rank, layout, dtype)
    wide = S.dense()
    v, c = normal(2, S.dim, seed=1, dtype=F32), normal(2, rank, seed=2)
    found = ops.topk_dot(S.values, S.indices, v, S.block_size)
    assert_sums_agree(found, v.double() @ wide.T, S.dim, v.double().abs() @ wide.abs().T)
    out = S.combine_(torch.ones(2, S.dim), c, 2.0, -1.0)
    assert_sums_agree(out, 2 - c @ wide, rank + 2, 2 + c.abs() @ wide.abs())
    again = S.combine_(torch.ones(2, S.dim), c, 2.0, -1.0)
    assert torch.equal(out, again) and torch.equal(found, ops.topk_dot(S.values, S.indices, v, S.block_size))


def test_values_kept_by_their_last_bits():
    # Magnitudes that agree but for the last bit, or the last but 12, and of both signs: every digit
    # of them decides.
    for dtype, bits in ((F32, 23), (F64, 52)):
        for shift in (0, 12):
            steps = torch.randperm(2000, generator=torch.Generator().manual_seed(shift))
            g = 1 + steps.to(dtype) * 2.0 ** (shift - bits)
            S = Sparse(1, (2000, 1500, 70), dtype, dtype)
            assert_push_is_right(S, 0, g * (1 - 2 * (steps % 2)))


def test_no_vector_gives_no_product():
    S = Sparse(3, (23, 7, 3), F32, F32)
    assert ops.topk_dot(S.values, S.indices, torch.empty(0, 23), 7).shape == (0, 3)


REFUSED = [
    *[(dtype, bad) for dtype in (F32, BF16, F16) for bad in (float("nan"), float("inf"), -float("inf"))],
    (BF16, float.fromhex("0x1.ffp127")),  # the first float32 that rounds to infinity
    (F16, 65600.0),  # whatever the error adds
    (F16, -1e10),
]


@pytest.mark.parametrize(("dtype", "bad"), REFUSED)
def test_values_that_cannot_be_stored_change_nothing(dtype: torch.dtype, bad: float):
    for layout in LAYOUTS[:-1]:
        S = Sparse(2, layout, dtype, F32)
        for row in range(2):
            S.push(row, normal(S.dim, seed=row, dtype=F32))
        before = S.clone()
        for at in {0, S.dim // 2, S.dim - 1}:
            g = normal(S.dim, seed=5, dtype=F32)
            g[at] = bad
            products = S.push(1, g)
            assert products.shape == (2,) and bool(products.isnan().all())
            assert all(torch.equal(a, b) for a, b in zip(before, S.tensors(), strict=True))


def test_an_error_that_grows_beyond_the_format_is_refused():
    S = Sparse(1, (4, 4, 1), F16, F32)
    S.push(0, torch.tensor([60_000.0, 50_000.0, 0.0, 0.0]))
    before = S.clone()
    assert bool(S.push(0, torch.tensor([0.0, 50_000.0, 0.0, 0.0])).isnan().all())
    assert all(torch.equal(a, b) for a, b in zip(before, S.tensors(), strict=True))


# Those of a GPU leave out what they cannot check without waiting.
KERNELS = os.environ.get("MFAC_TEST_KERNELS") if DEVICE.type == "cpu" else DEVICE.type


@pytest.mark.skipif(KERNELS is not None, reason="only the CPU's operators read indices to check them")
def test_indices_beyond_their_block_are_refused():
    S = filled(3, (23, 7, 3), F32)
    S.indices[1, 3, 2] = 2  # the last block has two columns
    message = r"Parameter `indices` should be below the columns of its block\. Found 2 in row 1\."
    with pytest.raises(RuntimeError, match=message):
        ops.topk_dot(S.values, S.indices, torch.ones(1, 23), 7)
    with pytest.raises(RuntimeError, match=message):
        ops.topk_combine_(torch.ones(1, 23), S.values, S.indices, torch.ones(1, 3, dtype=F64), 1.0, 1.0, 7)
    with pytest.raises(RuntimeError, match=message):
        ops.topk_push_(S.values, S.indices, S.error, 0, torch.ones(23), 7)


@pytest.mark.skipif(KERNELS is None, reason="the CPU's operators refuse these indices")
@pytest.mark.parametrize("layout", [(23, 7, 3), (2100, 1100, 40)])
def test_indices_beyond_their_block_are_left_out(layout: tuple[int, int, int]):
    S = filled(4, layout, F32)
    wide = S.dense()
    for row, index in ((0, S.block_size), (1, 65_535)):
        last = S.indices[row, 0, -1].long()
        wide[row, last] = 0
        S.indices[row, 0, -1] = index
    v, c = normal(2, S.dim, seed=1), normal(2, 4, seed=2)
    assert_sums_agree(ops.topk_dot(S.values, S.indices, v, S.block_size), v @ wide.T, S.dim, v.abs() @ wide.abs().T)
    out = ops.topk_combine_(torch.zeros(2, S.dim, dtype=F64), S.values, S.indices, c, 0.0, 1.0, S.block_size)
    assert_sums_agree(out, c @ wide, 6, c.abs() @ wide.abs())
    products = S.push(2, normal(S.dim, seed=3, dtype=F32))
    wide[2] = 0  # as the row's own indices are right again, but the others' are not
    right = Sparse(3, layout, F32, F32)
    right.values, right.indices = S.values[2:].clone(), S.indices[2:].clone()
    wide[2] = right.dense()[0]
    assert_sums_agree(products, wide @ wide[2], S.dim, wide.abs() @ wide[2].abs())


@pytest.mark.skipif(KERNELS in (None, "thread"), reason="threads may race for a sum where indices are no layout's")
@pytest.mark.parametrize("layout", [(23, 7, 3), (2100, 1100, 40), (65_537, 65_536, 100)])
def test_any_indices_stay_within_their_tensors(layout: tuple[int, int, int]):
    S = filled(3, layout, F32)
    S.indices = torch.randint(0, 65_536, S.indices.shape, generator=torch.Generator().manual_seed(0)).to(torch.uint16)
    around = torch.full((2, S.dim + 8), 77.0)
    for boundaries in (None, torch.randint(0, 65_536, S.boundaries.shape).to(torch.uint16)):
        arguments = (S.values, S.indices, normal(2, 3, seed=1), 0.0, 1.0, S.block_size, boundaries)
        ops.topk_combine_(around[:, 4:-4], *arguments)
        assert bool((around[:, :4] == 77).all()) and bool((around[:, -4:] == 77).all())
    assert bool(ops.topk_dot(S.values, S.indices, around[:, 4:-4], S.block_size).isfinite().all())


@pytest.mark.parametrize("wrong", ["row", "error", "kept", "indices", "block_size", "blocks"])
def test_wrong_arguments_are_refused(wrong: str):
    S, g, row, size = Sparse(3, (23, 7, 3), F32, F32), torch.ones(23), 0, 7
    if wrong == "row":
        row = 3
    elif wrong == "error":
        S.error = S.error.double()
    elif wrong == "kept":
        S.values, S.indices = torch.zeros(3, 4, 8), torch.zeros(3, 4, 8, dtype=torch.uint16)
    elif wrong == "indices":
        S.indices = torch.zeros(3, 4, 3, dtype=torch.int16)
    elif wrong == "block_size":
        size = 65_537
    else:
        size = 8
    with pytest.raises(RuntimeError, match="topk_push_: Parameter"):
        ops.topk_push_(S.values, S.indices, S.error, row, g, size)
