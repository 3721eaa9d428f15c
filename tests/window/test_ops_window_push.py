"""Values of 16-bit and int8 windows: the rows that `window_push_` stores, and their products."""

import pytest
import torch
from rounding import U, assert_sums_agree
from samplers import normal, window
from stored import BF16, F16, F32, F64, INT8, TILE, sample, tile_count, widened
from torch import Tensor

from mfac.core import ops

SIZES = (1, 3, 8, 31, 33, 1023, 1024, 1025, 2049, 8193, 40_001)
RANKS = (1, 2, 7, 8, 9, 17)
SMALLEST_SCALE = 2.0**-100  # at or below it an int8 tile is stored as zeros
SENTINEL = 77  # in memory beside the rows

# The largest float32 that rounds to a finite number: one unit below the middle between the largest
# and the next power.
LARGEST = {BF16: float.fromhex("0x1.fefffep127"), F16: float.fromhex("0x1.ffdffep15")}


def with_gaps(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """Equal to a matrix, with rows further apart than they are long, and the memory it lies in."""
    around = torch.full((tensor.shape[0], tensor.shape[1] + 5), SENTINEL, dtype=tensor.dtype)
    around[:, 2:-3] = tensor
    return around[:, 2:-3], around


def assert_passes_are_right(G: Tensor, scales: Tensor | None, count: int, dtype: torch.dtype) -> None:
    """Dot and combine, to the rounding of sums; two spare terms cover the scales' rounding."""
    rank, dim = G.shape
    wide = widened(G, scales)
    v = normal(count, dim, seed=count, dtype=dtype)
    found = ops.window_dot(G, v, scales)
    assert found.dtype == F64
    assert_sums_agree(found, v.double() @ wide.T, dim, v.double().abs() @ wide.abs().T)

    c, out = normal(count, rank, seed=7), normal(count, dim, seed=8, dtype=dtype)
    expected = 0.5 * out.double() - 3.0 * (c @ wide)
    absolute = 0.5 * out.double().abs() + 3.0 * (c.abs() @ wide.abs())
    assert ops.window_combine_(out, G, c, 0.5, -3.0, scales).data_ptr() == out.data_ptr()
    assert_sums_agree(out, expected, rank + 2, absolute)  # and the products with alpha and beta


@pytest.mark.parametrize("dim", SIZES)
@pytest.mark.parametrize("vector_dtype", [F32, F64])
@pytest.mark.parametrize("dtype", [BF16, F16, INT8])
def test_dot_and_combine_values(dtype: torch.dtype, vector_dtype: torch.dtype, dim: int):
    for rank in RANKS:
        G, scales = sample(rank, dim, dtype)
        assert_passes_are_right(G, scales, 1 if dim > 9000 else 3, vector_dtype)
        if rank in {2, 9}:
            assert_passes_are_right(with_gaps(G)[0], scales, 2, vector_dtype)


@pytest.mark.parametrize("vector_dtype", [F32, F64])
@pytest.mark.parametrize("dtype", [BF16, F16, INT8])
def test_values_of_combine_with_alpha_zero_read_no_output(dtype: torch.dtype, vector_dtype: torch.dtype):
    G, scales = sample(9, 2049, dtype)
    c, wide = normal(2, 9), widened(G, scales)
    out = torch.full((2, 2049), float("nan"), dtype=vector_dtype)
    ops.window_combine_(out, G, c, 0.0, 2.0, scales)
    assert_sums_agree(out, 2 * c @ wide, 9 + 2, 2 * c.abs() @ wide.abs())


@pytest.mark.parametrize("vector_dtype", [F32, F64])
@pytest.mark.parametrize("spread", [0.0, 12.0])
@pytest.mark.parametrize("rank", [16, 256, 264, 267, 1031])
def test_combine_values_of_many_int8_rows(rank: int, spread: float, vector_dtype: torch.dtype):
    """Fixed point is off by 2⁻⁵⁴ of a tile's largest coefficient for each unit of an entry."""
    dim = 3 * TILE - 27
    G, scales = sample(rank, dim, INT8)
    generator = torch.Generator().manual_seed(rank)
    c = normal(1, rank) * 10 ** (spread * torch.rand(1, rank, generator=generator, dtype=F64))
    wide = widened(G, scales)
    largest = (c[0, :, None] * scales.double()).abs().amax(0).repeat_interleave(TILE)[:dim]
    out = torch.full((1, dim), float("nan"), dtype=vector_dtype)
    ops.window_combine_(out, G, c, 0.0, 1.0, scales)
    bound = U[F64] * (largest * G.double().abs().sum(0) / 2 + 2 * (rank + 2) * c.abs() @ wide.abs())
    expected = c @ wide
    assert bool(((out.double() - expected).abs() <= bound + U[vector_dtype] * expected.abs()).all())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_combine_values_of_int8_rows_show_a_coefficient_that_is_not_finite(bad: float):
    G, scales = sample(9, 100, INT8)
    for row in (3, 8):  # of the eight rows in fixed point, and the one after them
        c, out = normal(1, 9), torch.zeros(1, 100)
        c[0, row] = bad
        assert not ops.window_combine_(out, G, c, 0.0, 1.0, scales).isfinite().any()


def test_combine_values_of_int8_rows_take_coefficients_of_every_size():
    G, scales = sample(8, 64, INT8)
    wide = widened(G, scales)
    for size in (1e300, 1e-280):
        c, out = normal(1, 8) * size, torch.zeros(1, 64, dtype=F64)
        assert_sums_agree(ops.window_combine_(out, G, c, 0.0, 1.0, scales), c @ wide, 8, c.abs() @ wide.abs())
    out = torch.full((1, 64), float("nan"), dtype=F64)
    for c in (torch.zeros(1, 8, dtype=F64), torch.full((1, 8), 5e-324, dtype=F64)):
        assert bool((ops.window_combine_(out, G, c, 0.0, 1.0, scales).abs() < 1e-300).all())


@pytest.mark.parametrize("vector_dtype", [F32, F64])
@pytest.mark.parametrize("dtype", [BF16, F16])
def test_values_of_every_finite_16_bit_number(dtype: torch.dtype, vector_dtype: torch.dtype):
    row = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    G = row[row.isfinite()][None]
    one = torch.ones(1, 1, dtype=F64)
    out = torch.zeros(G.shape, dtype=vector_dtype)
    # 1 · 1 · g is exact in float64 and, g having 11 bits at most, in float32.
    assert torch.equal(ops.window_combine_(out, G, one, 0.0, 1.0), G.to(vector_dtype))
    for g in (G[:, :1000], G[:, 20_000:21_000], G[:, -40:]):
        units = torch.eye(g.shape[1], dtype=vector_dtype)
        assert torch.equal(ops.window_dot(g.contiguous(), units)[:, 0], g[0].double())


def ties_and_neighbours(dtype: torch.dtype) -> Tensor:
    """Every finite number of a 16-bit format, each middle of two, and the float32 around each."""
    every = torch.arange(2**15, dtype=torch.int32).to(torch.int16).view(dtype).float()
    every = every[every.isfinite()]
    middles = (every[1:].double() + every[:-1].double()).div(2).float()  # exact: one bit more than the format's
    points = torch.cat([every, middles, torch.tensor([LARGEST[dtype]])])
    away = torch.tensor(float("inf"))
    points = torch.cat([points, points.nextafter(away), points.nextafter(-away)])
    points = points[(points <= LARGEST[dtype]) & (points >= 0)]
    if dtype == F16:
        points = points[points < 65520]  # what lies above is refused
    return torch.cat([points, -points])


def assert_bits_equal(found: Tensor, expected: Tensor) -> None:
    assert found.dtype == expected.dtype
    assert torch.equal(found.view(torch.int16), expected.view(torch.int16))  # -0 is not 0


@pytest.mark.parametrize("vector_dtype", [F32, F64])
@pytest.mark.parametrize("dtype", [BF16, F16])
def test_rounded_values_are_torchs_at_every_tie(dtype: torch.dtype, vector_dtype: torch.dtype):
    points = ties_and_neighbours(dtype)
    assert points.numel() > 2**18
    G = torch.zeros(1, points.numel(), dtype=dtype)
    ops.window_push_(G, 0, points.to(vector_dtype))
    assert_bits_equal(G[0], points.to(dtype))


@pytest.mark.parametrize("vector_dtype", [F32, F64])
@pytest.mark.parametrize("dtype", [BF16, F16])
def test_rounded_values_are_torchs_at_any_scale(dtype: torch.dtype, vector_dtype: torch.dtype):
    generator = torch.Generator().manual_seed(1)
    bits = torch.randint(-(2**31), 2**31, (100_003,), generator=generator).to(torch.int32)
    g = bits.view(F32)
    g = g[g.abs() < (65519 if dtype == F16 else 3.3e38)]  # also drops NaN
    G = torch.zeros(1, g.numel(), dtype=dtype)
    ops.window_push_(G, 0, g.to(vector_dtype))
    assert_bits_equal(G[0], g.to(dtype))
    precise = normal(4099, seed=3)  # float64 with all of its bits: by way of float32
    G = torch.zeros(1, 4099, dtype=dtype)
    ops.window_push_(G, 0, precise)
    assert_bits_equal(G[0], precise.float().to(dtype))


@pytest.mark.parametrize(
    "dtype",
    [
        BF16,
        F16,
    ],
)
def test_largest_values_are_stored(dtype: torch.dtype):
    g = torch.zeros(37)
    g[3], g[36] = LARGEST[dtype], -LARGEST[dtype]
    G = torch.zeros(2, 37, dtype=dtype)
    products = ops.window_push_(G, 1, g)
    assert_bits_equal(G[1], g.to(dtype))
    assert products[1] == 2 * torch.finfo(dtype).max ** 2  # 22 bits


@pytest.mark.parametrize("dim", SIZES)
@pytest.mark.parametrize("vector_dtype", [F32, F64])
@pytest.mark.parametrize("dtype", [BF16, F16, F32, F64])
def test_push_values(dtype: torch.dtype, vector_dtype: torch.dtype, dim: int):
    for rank in RANKS:
        G, around = with_gaps(window(rank, dim, norm=3.0, dtype=F32, seed=rank).to(dtype))
        row, g = rank // 2, normal(dim, seed=rank, dtype=vector_dtype)
        expected = around.clone()
        expected[row, 2:-3] = g.float().to(dtype) if dtype.itemsize == 2 else g.to(dtype)
        products = ops.window_push_(G, row, g)
        assert torch.equal(around, expected)  # the row, and nothing beside it
        wide = G.double()
        assert products.dtype == F64
        # The products are of the row as stored, whose values both vector types hold exactly; for a
        # float64 window and a float32 gradient too.
        assert_sums_agree(products, wide @ wide[row], dim, wide.abs() @ wide[row].abs())


def assert_int8_row_is_right(row: Tensor, scales: Tensor, g: Tensor) -> None:
    """One row [d] with its scales against the gradient that it was made from."""
    for t, scale in enumerate(scales.tolist()):
        q, part = row[t * TILE : (t + 1) * TILE], g[t * TILE : (t + 1) * TILE].double()
        most = float(part.abs().max())
        if scale == 0:
            assert most <= 128 * SMALLEST_SCALE and not q.any()
            continue
        assert int(scales[t].view(torch.int32)) & 0xFF == 0  # 16 significant bits of 24
        assert scale * 127 >= most  # exact in float64
        assert scale * 127 <= most * (1 + 2.0**-15) + 127 * 2.0**-149  # the least such scale, or nearly
        assert int(q.min()) >= -127 and int(q.max()) <= 127
        exact = q.double() * scale
        assert torch.equal((q.float() * scales[t]).double(), exact)  # a float32 number
        # g/scale is computed with the roundings of 1/scale and of the product, at most 2u·127
        # (first order), before it goes to the nearest integer.
        assert float((exact - part).abs().max()) <= scale * (0.5 + 2 * 127 * U[F32] * (1 + 2.0**-20))


def assert_int8_products_are_right(products: Tensor, G: Tensor, scales: Tensor, row: int) -> None:
    """A tile's integer sums are exact in 24 bits: one rounding a tile, one a sum."""
    rank, dim = G.shape
    tiles = tile_count(dim)
    padded = torch.zeros(rank, tiles * TILE, dtype=F64)
    padded[:, :dim] = G.double()
    sums = torch.einsum("rtj,tj->rt", padded.view(rank, tiles, TILE), padded[row].view(tiles, TILE))  # integers: exact
    terms = sums * (scales.double() * scales[row].double())  # the scales' product is exact
    bound = 2 * (tiles + 1) * U[F64] * terms.abs().sum(1)  # either side
    assert products.dtype == F64
    assert bool(((products - terms.sum(1)).abs() <= bound).all())
    if tiles == 1:
        assert torch.equal(products, terms[:, 0])


@pytest.mark.parametrize("dim", SIZES)
def test_int8_push_values(dim: int):
    for rank in RANKS:
        row = rank // 2
        stored, around = with_gaps(torch.zeros(rank, dim, dtype=INT8))
        scales = torch.zeros(rank, tile_count(dim))
        sizes = torch.logspace(-3, 3, dim)  # tiles of different scales
        rows = torch.stack([normal(dim, seed=10 * rank + i, dtype=F32) * sizes for i in range(rank)])
        for i in range(rank):
            ops.window_push_(stored, i, rows[i], scales)
        rows[row] = normal(dim, seed=rank + 1000, dtype=F32)
        before, kept = around.clone(), scales.clone()
        products = ops.window_push_(stored, row, rows[row], scales)
        for i in range(rank):
            assert_int8_row_is_right(stored[i], scales[i], rows[i])
        before[row], kept[row] = around[row], scales[row]
        assert torch.equal(around, before) and torch.equal(scales, kept)  # other rows
        assert bool((around[:, :2] == SENTINEL).all()) and bool((around[:, -3:] == SENTINEL).all())
        assert_int8_products_are_right(products, stored, scales, row)


@pytest.mark.parametrize("exponent", [-93, -30, -1, 0, 7, 60, 119])
def test_int8_values_at_the_edges_of_scales(exponent: int):
    """The largest entry is 127 scales exactly, or the float32 beside it; also halves of a scale."""
    generator = torch.Generator().manual_seed(5)
    mantissas = torch.cat(
        [
            torch.arange(2**15, 2**15 + 300),
            torch.arange(2**16 - 300, 2**16),
            torch.randint(2**15, 2**16, (300,), generator=generator),
        ]
    )
    exact = (mantissas.double() * 2.0 ** (exponent - 15)).float()
    most = torch.stack([(127 * exact).nextafter(torch.tensor(to)) for to in (0.0, float("inf"))] + [127 * exact])
    most = most.flatten()  # 127 · 16 bits: 23 bits, exact
    g = torch.zeros(most.numel(), TILE)
    g[:, 5] = -most
    g[:, 6:260] = (torch.arange(-127, 127) + 0.5) * (most / 127)[:, None]
    G, scales = torch.zeros(1, g.numel(), dtype=INT8), torch.zeros(1, most.numel())
    ops.window_push_(G, 0, g.flatten(), scales)
    assert_int8_row_is_right(G[0], scales[0], g.flatten())
    assert torch.equal(scales[0, -mantissas.numel() :], exact)
    assert bool((G[0].view(-1, TILE)[:, 5] == -127).all())


def test_int8_values_of_zeros_and_of_the_smallest_tiles():
    g = torch.zeros(6 * TILE + 3)
    g[TILE] = 1.0
    g[2 * TILE + 7] = 2.0**-149  # subnormal
    g[3 * TILE : 4 * TILE] = 127 * SMALLEST_SCALE
    g[4 * TILE : 5 * TILE] = 127 * SMALLEST_SCALE * 2
    G, scales = torch.ones(2, g.numel(), dtype=INT8), torch.ones(2, 7)
    products = ops.window_push_(G, 1, g, scales)
    assert_int8_row_is_right(G[1], scales[1], g)
    assert (scales[1] == 0).tolist() == [True, False, True, True, False, True, True]
    assert_int8_products_are_right(products, G, scales, 1)
    assert not ops.window_push_(G, 0, torch.zeros_like(g), scales).any()
    assert not G[0].any() and not scales[0].any()
    assert bool((G[1] == 127).any())


def test_int8_values_of_the_largest_gradients_are_finite():
    for most in (3.4e38, torch.finfo(F32).max):
        g = torch.zeros(TILE + 9)
        g[11], g[TILE + 2] = most, -most
        G, scales = torch.zeros(1, g.numel(), dtype=INT8), torch.zeros(1, 2)
        products = ops.window_push_(G, 0, g, scales)
        if bool(products.isnan().all()):  # refused
            assert not G.any() and not scales.any()
        else:
            assert_int8_row_is_right(G[0], scales[0], g)


REFUSED = [
    *[(dtype, bad) for dtype in (BF16, F16, INT8, F32) for bad in (float("nan"), float("inf"), -float("inf"))],
    (BF16, float.fromhex("0x1.ffp127")),  # the first float32 that rounds to infinity
    (BF16, -torch.finfo(F32).max),
    (F16, 65520.0),
    (F16, -65520.0),
    (F16, 1e30),
]


def assert_refused(dtype: torch.dtype, vector_dtype: torch.dtype, bad: float, dim: int, at: int) -> None:
    G, scales = sample(9, dim, dtype)
    G, around = with_gaps(G)
    before, scales_before = around.clone(), None if scales is None else scales.clone()
    g = normal(dim, dtype=vector_dtype)
    g[at] = bad
    products = ops.window_push_(G, 4, g, scales)
    assert products.shape == (9,) and bool(products.isnan().all())
    assert torch.equal(around, before)
    assert scales is None or torch.equal(scales, scales_before)


@pytest.mark.parametrize(("dtype", "bad"), REFUSED)
def test_values_that_cannot_be_stored_change_nothing(dtype: torch.dtype, bad: float):
    for dim in (1, 33, 2049):
        for at in {0, dim // 2, dim - 1}:
            assert_refused(dtype, F32, bad, dim, at)
            if dtype != INT8:
                assert_refused(dtype, F64, bad, dim, at)


@pytest.mark.parametrize(("dtype", "bad"), [(BF16, 1e300), (F16, 1e300), (F32, 1e100), (F32, 3.5e38), (F64, 1e200)])
def test_float64_values_that_cannot_be_stored_change_nothing(dtype: torch.dtype, bad: float):
    for dim in (1, 33, 2049):  # 1e200: the squared norm overflows
        assert_refused(dtype, F64, bad, dim, dim - 1)


@pytest.mark.parametrize("arguments", ["scales", "no scales", "float64", "row", "shape", "narrow scales"])
def test_wrong_arguments_are_refused(arguments: str):
    G, scales = torch.zeros(3, 2000, dtype=INT8), torch.zeros(3, 2)
    g = torch.ones(2000)
    with pytest.raises(RuntimeError, match="window_push_: Parameter"):
        if arguments == "scales":
            ops.window_push_(torch.zeros(3, 2000), 0, g, scales)
        elif arguments == "no scales":
            ops.window_push_(G, 0, g)
        elif arguments == "float64":
            ops.window_push_(G, 0, g.double(), scales)
        elif arguments == "row":
            ops.window_push_(G, 3, g, scales)
        elif arguments == "shape":
            ops.window_push_(G, 0, g[1:].clone(), scales)
        else:
            ops.window_push_(G, 0, g, torch.zeros(3, 1))
