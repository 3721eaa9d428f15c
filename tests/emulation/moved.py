"""Counts what the CUDA twins move: `python tests/emulation/moved.py`.

A line for every case: its name, the bytes that its launches read and write, each byte once a
launch, and what the table "Bytes and flops" of docs/kernels.md says, separated by tabs. In a
process of its own: the twins are registered once.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from emulation.build import build

Case = tuple[str, Callable[[], object], int]
ops = torch.ops.mfac_emulated


def ceil_div(a: int, b: int) -> int:
    """⌈a/b⌉."""
    return -(-a // b)


def chunks(m: int, d: int, rows: int) -> int:
    """P, of `rows` rows a block (csrc/window/window_dot/window_dot_cuda.h)."""
    tiles = ceil_div(d, 1024)
    return ceil_div(tiles, ceil_div(tiles, max(1, 2048 // ceil_div(m, rows))))


def window_cases() -> Iterator[Case]:
    """Dense rows."""
    m, d, V = 48, 20_000, 4
    T, P, P4 = ceil_div(d, 1024), chunks(m, d, 8), chunks(m, d, 4)
    v, out, c = torch.randn(9, d), torch.empty(1, d), torch.randn(1, m).double()
    weights, factors = torch.zeros(2, d // 2), ([0.1, 0.1], [1.0, 0.9])
    for dtype in (torch.float32, torch.bfloat16, torch.int8):
        G, t, is_int8 = (9 * torch.randn(m, d)).to(dtype), dtype.itemsize, dtype == torch.int8
        scales = torch.rand(m, T) if is_int8 else None
        window = t * m * d + (4 * m * T if is_int8 else 0)
        of_push = 2 * V * d + (d if is_int8 else 0)
        yield f"window_dot {dtype}", partial(ops.window_dot, G, v[:1], scales), window + V * d + 16 * P * m + 8 * m
        yield (
            f"window_dot {dtype} k=9",
            partial(ops.window_dot, G, v, scales),
            window + 9 * (V * d + 16 * P4 * m + 8 * m),
        )
        yield (
            f"window_combine_ {dtype}",
            partial(ops.window_combine_, out, G, c, 0.0, 1.0, scales),
            window + V * d + 8 * m,
        )
        yield (
            f"window_combine_ {dtype} k=9",
            partial(ops.window_combine_, torch.empty(9, d), G, torch.randn(9, m).double(), 0.0, 1.0, scales),
            window + 9 * (V * d + 8 * m),
        )
        for average, of_average in ((None, 0), (torch.randn(d), 2 * V * d)):
            descend = partial(
                ops.window_descend_, list(weights), average, G, c, 1.0, 0.5, [0, d // 2], *factors, scales
            )
            named = "" if average is None else " with momentum"
            yield f"window_descend_ {dtype}{named}", descend, window + of_average + 2 * V * d + 8 * m
        yield (
            f"window_push_ {dtype}",
            partial(ops.window_push_, G, 9, v[0], scales),
            window + of_push + 16 * P * m + 8 * m,
        )
    yield "squared_norms", partial(ops.squared_norms, torch.randn(m, d)), 4 * m * d + 16 * P * m + 8 * m


def sparse_cases() -> Iterator[Case]:
    """Sparse rows: a tenth of blocks of 4000 columns, so that hardly a column is in no row."""
    m, blocks, columns, kept, V, t = 48, 5, 4000, 400, 4, 4
    d, N, tiles = blocks * columns, m * blocks * kept, ceil_div(columns, 1024)
    offsets = torch.stack([torch.randperm(columns)[:kept].sort()[0] for _ in range(m * blocks)])
    rows = torch.randn(m, blocks, kept), offsets.view(m, blocks, kept).to(torch.uint16)
    v, out, c = torch.randn(1, d), torch.empty(1, d), torch.randn(1, m).double()
    boundaries = torch.stack([(offsets < 1024 * tile).sum(1) for tile in range(1, tiles)])  # [tiles - 1, m · blocks]
    boundaries = boundaries.view(tiles - 1, m, blocks).permute(2, 0, 1).contiguous().to(torch.uint16)
    of_boundaries = boundaries.nbytes
    dot = partial(ops.topk_dot, *rows, v, columns)
    yield "topk_dot", dot, (t + 2) * N + V * d + 16 * m * blocks
    combine = partial(ops.topk_combine_, out, *rows, c, 0.0, 1.0, columns)
    yield "topk_combine_ without boundaries", combine, (t + 4) * N + 2 * of_boundaries + V * d
    yield "topk_combine_", partial(combine, boundaries), (t + 2) * N + of_boundaries + V * d
    weights = [torch.zeros(d)]
    for average, of_average in ((None, 0), (torch.randn(d), 2 * V * d)):
        descend = partial(
            *(ops.topk_descend_, weights, average, *rows, c, 1.0, 0.5, 9),
            *([0], [0.1], [0.9], d, columns, boundaries),
        )
        named = "" if average is None else " with momentum"
        yield f"topk_descend_{named}", descend, (t + 2) * N + of_boundaries + of_average + 2 * V * d
    push = partial(ops.topk_push_, *rows, torch.randn(d), 9, v[0], columns, boundaries)
    row, shared = blocks * kept, (m + 9) * blocks * kept // 10  # entries where the new row has one too: all of its own
    yield "topk_push_", push, 2 * N + t * shared + (t + 2) * row + 5 * V * d + 16 * m * blocks + d // 2


def square_cases() -> Iterator[Case]:
    """Work on m x m. A solve is right at once if A inverts ½ I, and takes three steps otherwise."""
    for m in (512, 1100):
        n, eye, b = ceil_div(m, 64), torch.eye(m, dtype=torch.float64), torch.ones(1, m, dtype=torch.float64)
        replace = partial(ops.capacitance_replace_, 2 * eye, 0 * eye, 5, b[0], 0.5)
        yield f"capacitance_replace_ m={m}", replace, 12 * m * m + 16 * n * m + 80 * m
        product = 8 * m * m + (40 * n + 64 if m <= 1024 else 32 * n + 104) * m
        for steps, A in ((0, 2 * eye), (3, 2.002 * eye)):
            solve = partial(ops.capacitance_solve, A, 0 * eye, b, 0.5)
            yield f"capacitance_solve m={m} s={steps}", solve, (1 + steps) * product
    m, d = 256, 2048
    whiten = partial(ops.whitened_norms, torch.randn(m, d), torch.eye(m, dtype=torch.float64), True)
    yield "whitened_norms", whiten, 4 * m * d + 8 * m * m + 92 * m + 16 * d


def block_cases() -> Iterator[Case]:
    """Fisher blocks."""
    m, b, B, t = 64, 20, 128, 4
    r, d = min(m, B), b * B
    G, v = torch.randn(m, d), torch.randn(1, d).double()
    R, _ = ops.block_factor(G, B, 0.1, m)
    window, triangles = t * m * d, 4 * b * r * (r + 1)
    yield "block_factor", partial(ops.block_factor, G, B, 0.1, m), window + 8 * b * r * r
    yield "block_ihvp", partial(ops.block_ihvp, G, R, v, B, 0.1, m), window + triangles + 16 * d
    yield "block_matvec", partial(ops.block_matvec, G, v, B, 0.1, m), window + 16 * d
    yield "block_inverse_diagonal", partial(ops.block_inverse_diagonal, G, R, B, 0.1, m), window + triangles + 8 * d


def pruning_cases() -> Iterator[Case]:
    """The pruner's."""
    d = 20_000
    yield "obs_saliency", partial(ops.obs_saliency, torch.randn(d), torch.rand(d).double()), (4 + 8 + 8) * d
    yield "nm_mask", partial(ops.nm_mask, torch.rand(20, d // 20, 1).double(), 2, 4), 9 * d


def layerwise_cases() -> Iterator[Case]:
    """Of layers' weights: rows enough that all of H⁻¹ is read, each of a slot of its own."""
    rows, n, K = 48, 160, 32
    W, kept, eye = torch.randn(rows, n).double(), torch.rand(rows, n) > 0.5, torch.eye(n).double()
    sweep = partial(ops.obs_sweep_, W.clone(), torch.zeros_like(W), eye, kept)
    yield "obs_sweep_", partial(sweep, 0, 1), 33 * rows * n + 4 * n * n
    yield "obs_sweep_ 2:4", partial(sweep, 2, 4), 33 * rows * n + 4 * n * n
    for count, pending, left in ((n, K, n - K), (K // 2, K // 2, 0)):
        own = (
            8 * pending * n - 4 * pending**2 + 4 * left**2 + (8 + 8 + 8) * n
        )  # vectors, H⁻¹, its diagonal; places, states
        moved = 8 * n * n + rows * (own + (8 + 8 + 1) * n + 16 * count)
        yield f"obs_eliminate {count}", partial(ops.obs_eliminate, W, eye, W.isnan(), count, 0, 1), moved


def main() -> None:
    """Prints what every case moves."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    library = str(build("bytes"))
    torch.ops.load_library(library)
    report = ctypes.CDLL(library).mfac_simt_bytes
    report.restype = ctypes.c_char_p
    for cases in (window_cases, sparse_cases, square_cases, block_cases, pruning_cases, layerwise_cases):
        for name, run, stated in cases():
            report()
            run()
            counted = [line.split("\t")[1:] for line in report().decode().splitlines()]
            print(name, sum(int(count) for pair in counted for count in pair), stated, sep="\t", flush=True)


if __name__ == "__main__":
    main()
