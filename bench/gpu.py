"""What the operators and a step of a window cost on a GPU.

    python -m bench.gpu                        under a minute on a GPU
    python -m bench.gpu --device cpu --quick   the same code where there is none

Everything is first checked against a composition in float64 on the same device. Then it is timed in
turn with a copy of 256 MiB within the device's memory, which is the ceiling, and with a composition
of plain torch; a step also with the paper's algorithm, which rebuilds its m x m coefficients from
the Gram matrix, O(dm + m³). A rate counts the bytes that have to be read and written. The
capacitance's matrices stay in cache.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial

import torch
from torch import Tensor

import mfac
from bench.plain import PaperStep, combine, dot, push
from mfac.bench.measurement import BLOCK_SIZE, DAMPING, HEADER, Measurement
from mfac.bench.ops import FORMATS, descent_of, plain_descent, step
from mfac.bench.pruning import LAYERS, plain_mask, plain_saliency
from mfac.bench.timing import check, describe_machine, relative_error
from mfac.core import ops

NAMES = ("float32", "bfloat16", "int8", "top-k 1%")
ROUNDING = {"float32": 0.0, "bfloat16": 2.0**-8, "int8": 0.02}  # int8: of normal draws, a 127th of four deviations
FULL, QUICK = (512, 272_474, 20), (16, 4096, 2)  # m, d, rounds
WARM_UP = 3
F32, F64 = torch.float32, torch.float64
Functions = Mapping[str, Callable[[], object]]


class Clock:
    """Median seconds of functions run in turn, by events on a GPU, else by the host's clock."""

    def __init__(self, device: torch.device, rounds: int, copied_bytes: int) -> None:
        self.on_gpu = device.type == "cuda"
        self.rounds = rounds
        self.source = torch.zeros(copied_bytes // 4)
        self.target = torch.empty_like(self.source)

    def _once(self, function: Callable[[], object]) -> Callable[[], float]:
        if not self.on_gpu:
            start = time.perf_counter()
            function()
            taken = time.perf_counter() - start
            return lambda: taken
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        function()
        end.record()
        return lambda: begin.elapsed_time(end) / 1e3

    def time(self, functions: Functions, rounds: int | None = None) -> tuple[dict[str, float], float]:
        """Seconds by name, and the bytes a second that a copy reads and writes."""
        known = {**functions, "copy": lambda: self.target.copy_(self.source)}
        readings: dict[str, list[Callable[[], float]]] = {name: [] for name in known}
        for number in range(-WARM_UP, self.rounds if rounds is None else rounds):
            for name, function in known.items():
                reading = self._once(function)
                if number >= 0:
                    readings[name].append(reading)
        if self.on_gpu:
            torch.cuda.synchronize()
        seconds = {name: statistics.median(read() for read in some) for name, some in readings.items()}
        return seconds, 2 * self.source.nbytes / seconds.pop("copy")

    def line(
        self, op: str, shape: tuple[int, int, str], work: float, ours: Callable[[], object], plain: Callable[[], object]
    ) -> Measurement:
        """A line for one operator, which moves `work` bytes."""
        seconds, rate = self.time({"ours": ours, "plain": plain})
        return Measurement(op, *shape, seconds["ours"], work, rate, plain=seconds["plain"])


def noise(*shape: int, dtype: torch.dtype = F32) -> Tensor:
    """Normally distributed, rows of norm about 1."""
    return torch.randn(*shape, dtype=dtype) / shape[-1] ** 0.5


def filled(name: str, rank: int, dim: int) -> mfac.GradientWindow:
    dtype, density = FORMATS[name]
    window = mfac.GradientWindow(rank, dim, DAMPING, dtype, density, torch.get_default_device())
    gradients = noise(dim + rank) * ((dim + rank) / dim) ** 0.5
    for i in range(rank):
        window.push(gradients[i : i + dim].clone())
    return window


def passes(clock: Clock, name: str, window: mfac.GradientWindow, g: Tensor) -> Iterator[Measurement]:
    """The operators window_dot, _combine_, _descend_, _push_ of a format, or their topk_ twins."""
    rank, dim, rows, kind = window.rank, window.dim, window.format, "topk" if "top-k" in name else "window"
    shape, vector = (rank, dim, name), g.nbytes
    v, c, out = noise(1, dim), noise(1, rank, dtype=F64), torch.empty(1, dim)
    check(f"{kind}_dot", relative_error(rows.dot(v)[0], dot(rows, v[0].double())), 1e-12)
    read = rows.values.nbytes + rows.indices.nbytes if kind == "topk" else rows.nbytes  # without error and boundaries
    yield clock.line(f"{kind}_dot", shape, read + vector, partial(rows.dot, v), partial(dot, rows, v[0]))
    check(f"{kind}_combine_", relative_error(rows.combine_(out, c, 0.0, 1.0)[0], combine(rows, c[0], dim)), 2e-7)
    ours, plain = partial(rows.combine_, out, c, 0.0, 1.0), partial(combine, rows, c[0].float(), dim)
    yield clock.line(f"{kind}_combine_", shape, read + vector, ours, plain)
    average, weights = torch.zeros(2, dim)
    descent, expected = descent_of(weights, 0.5), combine(rows, c[0], dim)
    rows.descend_(descent, c, 1.0, 0)
    check(f"{kind}_descend_", relative_error(weights, -0.5 * expected), 2e-7)
    descent.average = average
    ours = partial(rows.descend_, descent, c, 1.0, 0)
    plain = partial(plain_descent, partial(combine, rows, c[0].float(), dim), descent)
    yield clock.line(f"{kind}_descend_", shape, read + 4 * vector, ours, plain)
    mine, theirs = copy.deepcopy(rows), copy.deepcopy(rows)  # what the window knows of its rows stays true
    products = mine.push_(1, g)
    stored = mine.as_dense(slice(1, 2))[0].double()
    check(f"{kind}_push_", relative_error(products, dot(mine, stored)), 1e-12)
    if kind == "window":
        check("window_push_, the row", relative_error(stored, g), ROUNDING[name])
    work = rows.indices.nbytes + 5 * vector if kind == "topk" else read + vector  # few values meet one of the row
    yield clock.line(f"{kind}_push_", shape, work, partial(mine.push_, 1, g), partial(push, theirs, 1, g))


def whole_step(clock: Clock, name: str, window: mfac.GradientWindow, g: Tensor) -> Measurement:
    """`push` and `precondition`, against passes with a Cholesky factorisation and the paper."""
    rank, dim = window.rank, window.dim
    y, rows = step(window, g).double(), window.format
    newest = rows.as_dense(slice(window.newest, window.newest + 1))[0].double()
    check("step", relative_error(DAMPING * y + combine(rows, dot(rows, y), dim) / rank, newest), 1e-5)
    kept, gram, unit = copy.deepcopy(rows), window.capacitance.gram.clone(), torch.eye(rank, 1, dtype=F64)
    gram = gram.tril() + gram.tril(-1).T

    def plain() -> Tensor:
        gram[0] = push(kept, 0, g).double()
        gram[:, 0] = gram[0]
        lower = torch.linalg.cholesky_ex(gram + rank * DAMPING * torch.eye(rank, dtype=F64)).L
        return combine(kept, torch.cholesky_solve(unit, lower)[:, 0].float(), dim)

    paper, row = PaperStep(rows.as_dense().float().clone(), DAMPING), window.newest
    check("the paper's step", relative_error(paper.step(row, newest.float()), y), 1e-3)
    seconds, rate = clock.time({"ours": partial(step, window, g), "plain": plain})
    theirs, _ = clock.time({"paper": partial(paper.step, row, g)}, rounds=min(3, clock.rounds))
    shape, work = (rank, dim, name), 2.0 * rows.nbytes + 2 * g.nbytes
    return Measurement(
        "push + precondition", *shape, seconds["ours"], work, rate, plain=seconds["plain"], paper=theirs["paper"]
    )


def capacitance(clock: Clock, rank: int) -> Iterator[Measurement]:
    """A replaced row and a refined solve, over lower triangles; plain torch over squares."""
    rows, shift, row = noise(rank, 2 * rank, dtype=F64), rank * DAMPING, rank // 2
    shape, work, damped = (rank, 2 * rank, "float64"), 3 * 4.0 * rank**2, shift * torch.eye(rank, dtype=F64)
    gram = ops.gram(rows)
    inverse = torch.linalg.inv(gram + damped).contiguous()
    full = inverse.clone()
    rows[row] = noise(2 * rank, dtype=F64)
    products = rows @ rows[row]

    def plain() -> Tensor:
        column = full[row].clone()
        full.sub_(torch.outer(column, column / column[row]))  # the inverse without the row
        w = full @ products
        pivot = shift + products[row] - w @ products
        w[row] = -1
        return full.add_(torch.outer(w, w / pivot))

    ops.capacitance_replace_(inverse, gram, row, products, shift)
    expected = torch.linalg.inv(rows @ rows.T + damped)
    check("capacitance_replace_", relative_error(inverse.tril(), expected.tril()), 1e-11)
    check("its composition", relative_error(plain(), expected), 1e-11)
    ours = partial(ops.capacitance_replace_, inverse, gram, row, products, shift)
    yield clock.line("capacitance_replace_", shape, work, ours, plain)
    unit, matrix = torch.eye(1, rank, dtype=F64), rows @ rows.T + damped
    solution, _ = ops.capacitance_solve(inverse, gram, unit, shift)
    check("capacitance_solve", relative_error(solution @ matrix, unit), 1e-12)
    ours = partial(ops.capacitance_solve, inverse, gram, unit, shift)
    yield clock.line(
        "capacitance_solve", shape, work, ours, lambda: torch.cholesky_solve(unit.T, torch.linalg.cholesky_ex(matrix).L)
    )


def static(clock: Clock, rank: int, dim: int) -> Iterator[Measurement]:
    """whitened_norms with m, block_factor and block_inverse_diagonal with m / 4 rows."""
    G = noise(rank, dim)
    lower = torch.linalg.cholesky(ops.gram(G) + rank * DAMPING * torch.eye(rank, dtype=F64))
    factor = torch.linalg.solve_triangular(lower, torch.eye(rank, dtype=F64), upper=False).contiguous()
    single = factor.float()
    norms, _ = ops.whitened_norms(G, factor, True)
    check("whitened_norms", relative_error(norms, (factor @ G.double()).square().sum(0)), 1e-5)
    work = G.nbytes + 16 * dim + factor.nbytes / 2
    ours = partial(ops.whitened_norms, G, factor, True)
    yield clock.line("whitened_norms", (rank, dim, "float32"), work, ours, lambda: (single @ G).square_().sum(0))

    rank, dim = max(2, rank // 4), dim // BLOCK_SIZE * BLOCK_SIZE
    G, identity = noise(rank, dim), rank * DAMPING * torch.eye(rank, dtype=F64)
    settings = (BLOCK_SIZE, DAMPING, float(rank))

    def wide() -> Tensor:
        return G.view(rank, -1, BLOCK_SIZE).transpose(0, 1).double()  # [blocks, m, B]

    def plain_factors() -> Tensor:
        blocks = wide()
        return torch.linalg.cholesky_ex(torch.baddbmm(identity.expand(len(blocks), -1, -1), blocks, blocks.mT)).L

    def plain_diagonal(factors: Tensor) -> Tensor:
        whitened = torch.linalg.solve_triangular(factors, wide(), upper=False)
        return ((1 - whitened.square_().sum(1)) / DAMPING).flatten()

    (factors, _), expected = ops.block_factor(G, *settings), plain_factors()
    check("block_factor", relative_error(factors.mT.tril(), expected), 1e-12)
    shape, work = (rank, dim, "float32"), float(G.nbytes + factors.nbytes)
    yield clock.line("block_factor", shape, work, partial(ops.block_factor, G, *settings), plain_factors)
    diagonal = ops.block_inverse_diagonal(G, factors, *settings)
    check("block_inverse_diagonal", relative_error(diagonal, plain_diagonal(expected)), 1e-11)
    ours = partial(ops.block_inverse_diagonal, G, factors, *settings)
    yield clock.line("block_inverse_diagonal", shape, work + 8 * dim, ours, partial(plain_diagonal, expected))


def pruning(clock: Clock, dim: int, copies: int) -> Iterator[Measurement]:
    """obs_saliency, and nm_mask of weights of so many Linears and convolutions."""
    w, diagonal = noise(dim), 1 + noise(dim).abs()
    ours, plain = partial(ops.obs_saliency, w, diagonal), partial(plain_saliency, w, diagonal)
    check("obs_saliency", relative_error(ours(), plain()), 1e-14)
    yield clock.line("obs_saliency", (1, dim, "float32"), 16.0 * dim, ours, plain)
    for layer, (rows, axis, inner) in LAYERS.items():
        scores = noise(copies * rows, axis, inner, dtype=F64)
        ours, plain = partial(ops.nm_mask, scores, 2, 4), partial(plain_mask, scores, 2, 4)
        check("nm_mask", float((ours() != plain()).sum()), 0)
        shape = (1, scores.numel(), "float64")
        yield clock.line(f"nm_mask 2:4, {layer}", shape, 9.0 * scores.numel(), ours, plain)


def measurements(clock: Clock, rank: int, dim: int) -> Iterator[Measurement]:
    g = noise(dim)
    for name in NAMES:
        window = filled(name, rank, dim)
        yield from passes(clock, name, window, g)
        yield whole_step(clock, name, window, g)
    yield from capacitance(clock, 2 * rank)
    yield from static(clock, max(8, rank // 2), dim)
    yield from pruning(clock, 64 * dim, 1 if rank < 64 else 16)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu")
    parser.add_argument("--device", default="cuda", type=torch.device)
    parser.add_argument("--quick", action="store_true", help="small shapes, few rounds")
    arguments = parser.parse_args()
    device = arguments.device
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no GPU; --device cpu runs the same code without one")
    torch.set_default_device(device)
    torch.manual_seed(0)
    rank, dim, rounds = QUICK if arguments.quick else FULL
    clock = Clock(device, rounds, 1 << (20 if arguments.quick else 28))
    print(describe_machine() if device.type == "cpu" else f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    print(f"copy within {device.type} memory {clock.time({})[1] / 1e9:.1f} GB/s, the ceiling\n\n{HEADER}")
    for line in measurements(clock, rank, dim):
        print(line, flush=True)


if __name__ == "__main__":
    main()
