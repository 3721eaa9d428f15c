"""Sliding windows in every format: a whole step and its two passes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache, partial

import torch
from torch import Tensor

from mfac.bench.measurement import DAMPING, READ, Measurement, Setting
from mfac.bench.recurrence import DynamicRecurrence
from mfac.bench.timing import check, relative_error
from mfac.core import ops
from mfac.curvature.dual import window_dot
from mfac.window.descent import Descent
from mfac.window.formats.base import Rows
from mfac.window.formats.topk import TopKRows
from mfac.window.window import GradientWindow

FORMATS: dict[str, tuple[torch.dtype, float]] = {
    "float32": (torch.float32, 1.0),
    "bfloat16": (torch.bfloat16, 1.0),
    "float16": (torch.float16, 1.0),
    "int8": (torch.int8, 1.0),
    "top-k 1%": (torch.float32, 0.01),
}
MOMENTUM = 0.9
_ROWS_AT_ONCE = 4
_PARAMETERS = 64  # about as many as a ResNet-20 has


def filled(
    setting: Setting, rank: int, dim: int, dtype: torch.dtype = torch.float32, density: float = 1.0
) -> GradientWindow:
    """A full `GradientWindow` of shifted pieces of noise.

    Rows stored as floats are written at once, others pushed.

    Args:
        setting: For its generator.
        rank: m.
        dim: d.
        dtype: Of the window.
        density: Of its rows.

    Returns:
        The window.
    """
    window = GradientWindow(rank, dim, DAMPING, dtype, density)
    noise = setting.normal(dim + rank)
    if not dtype.is_floating_point or density < 1:
        for i in range(rank):
            window.push(noise[i : i + dim])
        return window
    state = window.state_dict(copy=False)
    for i, row in enumerate(state["rows"]):
        row.copy_(noise[i : i + dim])
    window.load_state_dict(
        {
            **state,
            "gram": gram_of(window.format, rank),
            "replaced": -1,  # the first solve factors
            "ages": torch.arange(rank),
            "pushes": rank,
            "newest": rank - 1,
        }
    )
    window.precondition()
    return window


@lru_cache(maxsize=len(FORMATS))
def _window(name: str, rank: int, dim: int) -> GradientWindow:
    dtype, density = FORMATS[name]
    return filled(Setting(rank, dim), rank, dim, dtype, density)


def _tiles(rows: Rows, rank: int, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """All rows at once if they are stored in `dtype`, or a few at a time, widened within cache."""
    at_once = rank if rows.dtype == dtype else _ROWS_AT_ONCE
    for start in range(0, rank, at_once):
        some = slice(start, min(start + at_once, rank))
        yield some, rows.as_dense(some).to(dtype)


def gram_of(rows: Rows, rank: int) -> Tensor:
    """G Gᵀ of rows in any format, [m, m] float64."""
    stored = rows.as_dense()
    return ops.gram(stored if stored.dtype.itemsize >= 4 else stored.float())


def plain_dot(rows: Rows, rank: int, v: Tensor) -> Tensor:
    """What plain torch would do for G v: [m]."""
    if isinstance(rows, TopKRows):
        return (rows.values.flatten(1) * v[rows.columns(slice(None)).flatten(1)]).sum(1)
    return torch.cat([tile @ v for _, tile in _tiles(rows, rank, v.dtype)])


def plain_combine(rows: Rows, rank: int, c: Tensor, dim: int) -> Tensor:
    """What plain torch would do for Gᵀ c: [d]."""
    out = c.new_zeros(dim)
    if isinstance(rows, TopKRows):
        return out.index_add_(
            0, rows.columns(slice(None)).flatten(), (rows.values.flatten(1).to(c.dtype) * c[:, None]).flatten()
        )
    for some, tile in _tiles(rows, rank, c.dtype):
        out.addmv_(tile.T, c[some])
    return out


def descent_of(weights: Tensor, rate: float, average: Tensor | None = None) -> Descent:
    """A vector of weights [d] as a network's parameters: 64 pieces, or fewer where d is small."""
    descent, column = Descent(average, MOMENTUM), 0
    for piece in weights.split(-(-weights.numel() // _PARAMETERS)):
        descent.add(piece, column, rate)
        column += piece.numel()
    return descent


def plain_descent(direction: Callable[[], Tensor], descent: Descent) -> None:
    """What plain torch would do to move weights along the average of a direction [d]."""
    assert descent.average is not None
    descent.average.lerp_(direction(), 1 - MOMENTUM)
    replace(descent, average=None).apply_(descent.average)


def _check_descent(name: str, rows: Rows, c: Tensor, expected: Tensor) -> None:
    """Weights that are zero before."""
    weights = torch.zeros(expected.numel())
    rows.descend_(descent_of(weights, 0.5), c, 1.0, 0)
    check(f"window_descend_, {name}", relative_error(weights, -0.5 * expected), 2e-7)


def _check_step(name: str, window: GradientWindow) -> None:
    """F y = g in float64, for y the preconditioned newest gradient g."""
    newest = window.newest
    assert newest is not None
    rows, rank = window.format, window.rank
    g = rows.as_dense(torch.tensor([newest]))[0].double()
    y = window.precondition().double()
    found = DAMPING * y + plain_combine(rows, rank, plain_dot(rows, rank, y), window.dim) / rank
    check(f"step, {name}", relative_error(found, g), 1e-5)


def steps(setting: Setting) -> list[Measurement]:
    """`push` and `precondition`, all formats in turn.

    Args:
        setting: Shapes and rounds.

    Returns:
        A line for each format.
    """
    rank, dim = setting.rank, setting.dim
    g = setting.normal(dim)
    windows: dict[str, GradientWindow] = {name: _window(name, rank, dim) for name in FORMATS}
    functions: dict[str, Callable[[], object]] = {}
    for name, window in windows.items():
        window.push(g)
        _check_step(name, window)
        functions[name] = partial(step, window, g)
    seconds, rates = setting.time(functions, READ)
    plain, _ = setting.time({name: _plain_step(windows[name], g) for name in FORMATS}, rounds=setting.slow_rounds)
    paper = DynamicRecurrence(windows["float32"].rows.clone(), DAMPING)
    windows["float32"].push(g)
    row = windows["float32"].newest
    assert row is not None
    check("the paper's step", relative_error(paper.step(row, g), windows["float32"].precondition()), 1e-3)
    theirs, _ = setting.time({"paper": lambda: paper.step(row, g)}, rounds=setting.slow_rounds)
    return [
        Measurement(
            "push + precondition",
            *(rank, dim, name, seconds[name], 2.0 * windows[name].format.nbytes, rates[READ]),
            plain=plain[name],
            paper=theirs["paper"] if name == "float32" else None,
        )
        for name in FORMATS
    ]


def step(window: GradientWindow, g: Tensor) -> Tensor:
    """`push` and `precondition`: F⁻¹g, [d]."""
    window.push(g)
    return window.precondition()


def _plain_step(window: GradientWindow, g: Tensor) -> Callable[[], object]:
    """A pass for the products, Cholesky, and a pass for the step; the row is not stored."""
    rank, products = window.rank, gram_of(window.format, window.rank)

    def composition() -> Tensor:
        products[0] = plain_dot(window.format, rank, g)
        products[:, 0] = products[0]
        lower = torch.linalg.cholesky(products + rank * DAMPING * torch.eye(rank, dtype=torch.float64))
        unit = torch.eye(rank, 1, dtype=torch.float64)
        return plain_combine(window.format, rank, torch.cholesky_solve(unit, lower)[:, 0].float(), window.dim)

    return composition


def many_vectors(setting: Setting) -> list[Measurement]:
    """Products with several vectors: a shared pass for few, matrix products for many.

    Args:
        setting: Shapes and rounds.

    Returns:
        A line for each number of vectors.
    """
    rank, dim, lines = setting.rank, setting.dim, []
    window = _window("float32", rank, dim).rows
    for count in (1, 4, 16):
        v = setting.normal(count, dim)
        check(f"window_dot, {count}", relative_error(window_dot(window, v), v.double() @ window.double().T), 1e-12)
        seconds, rates = setting.time({"window_dot": partial(window_dot, window, v)}, READ)
        plain, _ = setting.time({"torch": partial(torch.mm, v, window.T)}, rounds=setting.slow_rounds)
        lines.append(
            Measurement(
                f"window_dot, {count} vectors",
                *(rank, dim, "float32", seconds["window_dot"], window.nbytes, rates[READ]),
                plain=plain["torch"],
            )
        )
    return lines


def passes(setting: Setting) -> list[Measurement]:
    """The two passes of every format, and the second as it moves weights.

    Args:
        setting: Shapes and rounds.

    Returns:
        Three lines for each format.
    """
    rank, dim = setting.rank, setting.dim
    v, c = setting.normal(1, dim), setting.normal(1, rank, dtype=torch.float64)
    out, lines = torch.empty(1, dim), []
    descent = descent_of(torch.zeros(dim), 1e-3, torch.zeros(dim))
    for name in FORMATS:
        rows: Rows = _window(name, rank, dim).format
        check(f"window_dot, {name}", relative_error(rows.dot(v)[0], plain_dot(rows, rank, v[0].double())), 1e-12)
        expected = plain_combine(rows, rank, c[0], dim)
        check(f"window_combine_, {name}", relative_error(rows.combine_(out, c, 0.0, 1.0)[0], expected), 2e-7)
        _check_descent(name, rows, c, expected)
        seconds, rates = setting.time(
            {
                "window_dot": partial(rows.dot, v),
                "window_combine_": partial(rows.combine_, out, c, 0.0, 1.0),
                "window_descend_": partial(rows.descend_, descent, c, 1.0, 0),
            },
            READ,
        )
        plain, _ = setting.time(
            {
                "window_dot": partial(plain_dot, rows, rank, v[0]),
                "window_combine_": partial(plain_combine, rows, rank, c[0].float(), dim),
                "window_descend_": partial(
                    plain_descent, partial(plain_combine, rows, rank, c[0].float(), dim), descent
                ),
            },
            rounds=setting.slow_rounds,
        )
        lines += [
            Measurement(op, rank, dim, name, seconds[op], rows.nbytes, rates[READ], plain=plain[op]) for op in seconds
        ]
    return lines
