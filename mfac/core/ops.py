"""The compiled operators `torch.ops.mfac.*` as typed functions, and their fake implementations.

Importing this module loads the extension. Schemas: csrc/schemas.cpp. The functions below add
nothing but types; arguments are checked by their callers.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from torch import Tensor

from mfac import _C
from mfac.core import cuda_ops

_WANTED_ISA = os.environ.get("MFAC_CPU_ISA")
if _WANTED_ISA and _C.build_info()["isa_chosen"] != _WANTED_ISA:
    raise ImportError(
        "Environment variable MFAC_CPU_ISA should name an instruction set that was built, one of "
        f"{_C.build_info()['isas_built']}, and that this CPU has. Found {_WANTED_ISA!r}."
    )

torch.library.impl("mfac::gram", "CUDA", cuda_ops.gram)
torch.library.impl("mfac::restricted_solve", "CUDA", cuda_ops.restricted_solve)

_ops = torch.ops.mfac


def squared_norms(window: Tensor) -> Tensor:
    """‖g_i‖² in float64, [m]; not finite if an entry is not. One pass."""
    result: Tensor = _ops.squared_norms(window)
    return result


def gram(window: Tensor) -> Tensor:
    """G Gᵀ of a float32 or float64 window, in float64: [m, m]. O(m²d), extra memory O(m²)."""
    result: Tensor = _ops.gram(window)
    return result


def whitened_norms(window: Tensor, inverse_factor: Tensor, single: bool) -> tuple[Tensor, Tensor]:
    """Squared column norms of L⁻¹G and error bounds, [d] float64; `single` works in float32."""
    norms, errors = _ops.whitened_norms(window, inverse_factor, single)
    return norms, errors


def window_dot(window: Tensor, vectors: Tensor, scales: Tensor | None = None) -> Tensor:
    """Products of `vectors` [k, d] with all rows, accumulated in float64: [k, m]; one pass."""
    result: Tensor = _ops.window_dot(window, vectors, scales)
    return result


def window_combine_(
    out: Tensor, window: Tensor, coefficients: Tensor, alpha: float, beta: float, scales: Tensor | None = None
) -> Tensor:
    """In place: out [k, d] <- alpha · out + beta · coefficients [k, m] G, in one pass."""
    _ops.window_combine_(out, window, coefficients, alpha, beta, scales)
    return out


def window_descend_(
    parameters: Sequence[Tensor],
    average: Tensor | None,
    window: Tensor,
    coefficients: Tensor,
    beta: float,
    momentum: float,
    columns: Sequence[int],
    rates: Sequence[float],
    decays: Sequence[float],
    scales: Tensor | None = None,
) -> None:
    """In place: weights, the window's columns[i] and on, become decays[i] · w - rates[i] · v.

    v is beta · coefficients [1, m] G, or `average` [d], which becomes
    momentum · average + (1 - momentum) · that.
    """
    _ops.window_descend_(parameters, average, window, coefficients, beta, momentum, columns, rates, decays, scales)


def zeros_in_huge_pages(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """A tensor of zeros on the CPU, in large pages where the system has them to give."""
    memory = torch.empty(tuple(shape), dtype=dtype, device="cpu")
    _ops.prefer_huge_pages_(memory)
    return memory.zero_()


def window_push_(window: Tensor, row: int, gradient: Tensor, scales: Tensor | None = None) -> Tensor:
    """Rounds a gradient [d] into a row and returns the row's products [m]: NaN if it is refused."""
    result: Tensor = _ops.window_push_(window, row, gradient, scales)
    return result


def topk_dot(values: Tensor, indices: Tensor, vectors: Tensor, block_size: int) -> Tensor:
    """`window_dot` for sparse rows: values and uint16 offsets [m, blocks, kept]; O(mk)."""
    result: Tensor = _ops.topk_dot(values, indices, vectors, block_size)
    return result


def topk_combine_(
    out: Tensor,
    values: Tensor,
    indices: Tensor,
    coefficients: Tensor,
    alpha: float,
    beta: float,
    block_size: int,
    boundaries: Tensor | None = None,
) -> Tensor:
    """`window_combine_` for sparse rows; without boundaries a GPU finds them in another pass."""
    _ops.topk_combine_(out, values, indices, coefficients, alpha, beta, block_size, boundaries)
    return out


def topk_descend_(
    parameters: Sequence[Tensor],
    average: Tensor | None,
    values: Tensor,
    indices: Tensor,
    coefficients: Tensor,
    beta: float,
    momentum: float,
    newest: int,
    columns: Sequence[int],
    rates: Sequence[float],
    decays: Sequence[float],
    dim: int,
    block_size: int,
    boundaries: Tensor | None = None,
) -> None:
    """`window_descend_` for sparse rows; row `newest`'s weights move along v, without average."""
    _ops.topk_descend_(
        *(parameters, average, values, indices, coefficients, beta, momentum, newest),
        *(columns, rates, decays, dim, block_size, boundaries),
    )


def topk_push_(
    values: Tensor,
    indices: Tensor,
    error: Tensor,
    row: int,
    gradient: Tensor,
    block_size: int,
    boundaries: Tensor | None = None,
) -> Tensor:
    """`window_push_` for sparse rows: stores the largest of error + gradient; the rest is error."""
    result: Tensor = _ops.topk_push_(values, indices, error, row, gradient, block_size, boundaries)
    return result


def capacitance_replace_(inverse: Tensor, gram: Tensor, row: int, products: Tensor, shift: float) -> Tensor:
    """Replaces a row and column of K, and updates (shift·I + K)⁻¹, lower triangles; O(m²)."""
    pivot: Tensor = _ops.capacitance_replace_(inverse, gram, row, products, shift)
    return pivot


def capacitance_solve(inverse: Tensor, gram: Tensor, vectors: Tensor, shift: float) -> tuple[Tensor, Tensor]:
    """(shift·I + K)⁻¹ times `vectors` [k, m], refined with K; the largest backward error, [1]."""
    solutions, error = _ops.capacitance_solve(inverse, gram, vectors, shift)
    return solutions, error


def block_factor(window: Tensor, block_size: int, damping: float, num_terms: float) -> tuple[Tensor, Tensor]:
    """Upper Cholesky factors of all diagonal blocks, [blocks, r, r]; failing pivots or -1."""
    factors, failed = _ops.block_factor(window, block_size, damping, num_terms)
    return factors, failed


def block_ihvp(
    window: Tensor, factors: Tensor, vectors: Tensor, block_size: int, damping: float, num_terms: float
) -> Tensor:
    """Block-diagonal F⁻¹ times float64 `vectors` [k, d]. One pass over the window."""
    result: Tensor = _ops.block_ihvp(window, factors, vectors, block_size, damping, num_terms)
    return result


def block_matvec(window: Tensor, vectors: Tensor, block_size: int, damping: float, num_terms: float) -> Tensor:
    """Block-diagonal F times float64 `vectors` [k, d]. One pass over the window."""
    result: Tensor = _ops.block_matvec(window, vectors, block_size, damping, num_terms)
    return result


def block_inverse_diagonal(
    window: Tensor, factors: Tensor, block_size: int, damping: float, num_terms: float
) -> Tensor:
    """The diagonal of the block-diagonal F⁻¹, [d] float64."""
    result: Tensor = _ops.block_inverse_diagonal(window, factors, block_size, damping, num_terms)
    return result


def obs_saliency(weights: Tensor, inverse_diagonal: Tensor) -> Tensor:
    """w²/(2 (F⁻¹)_pp) in float64, [d]. One pass."""
    result: Tensor = _ops.obs_saliency(weights, inverse_diagonal)
    return result


def nm_mask(scores: Tensor, keep: int, group: int) -> Tensor:
    """Which scores [outer, axis, inner] are the `keep` highest of a `group` <= 64 along axis."""
    result: Tensor = _ops.nm_mask(scores, keep, group)
    return result


def obs_sweep_(
    weight: Tensor,
    carried: Tensor,
    factor: Tensor,
    kept: Tensor,
    keep: int,
    group: int,
    scales: Tensor | None = None,
    zeros: Tensor | None = None,
    levels: int = 0,
) -> None:
    """In place: the column sweep of a block; w becomes q, `carried` (w - q) R with R = `factor`.

    `kept` is the mask, or written where keep > 0. O(rows · width²).
    """
    _ops.obs_sweep_(weight, carried, factor, kept, keep, group, scales, zeros, levels)


def obs_eliminate(
    weight: Tensor,
    inverse: Tensor,
    dropped: Tensor,
    count: int,
    keep: int,
    group: int,
    scales: Tensor | None = None,
    zeros: Tensor | None = None,
    levels: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Greedy steps of every row by H⁻¹: order, losses [rows, count], weights; O(n³) a row."""
    order, losses, result = _ops.obs_eliminate(weight, inverse, dropped, count, keep, group, scales, zeros, levels)
    return order, losses, result


def restricted_solve(matrix: Tensor, target: Tensor, kept: Tensor) -> Tensor:
    """For each row the x_S with matrix_SS x_S = target_S on what it keeps, 0 elsewhere; float64."""
    result: Tensor = _ops.restricted_solve(matrix, target, kept)
    return result


def _float64(like: Tensor, *shape: int) -> Tensor:
    return like.new_empty(shape, dtype=torch.float64)


def _block_order(window: Tensor, block_size: int) -> tuple[int, int]:
    rank, dim = window.shape
    size = max(1, min(block_size, dim))
    return -(-dim // size), min(rank, size)


for _name in (
    "window_combine_",
    "window_descend_",
    "prefer_huge_pages_",
    "topk_combine_",
    "topk_descend_",
    "obs_sweep_",
):
    torch.library.register_fake(f"mfac::{_name}", lambda *_: None)


@torch.library.register_fake("mfac::squared_norms")
def _(window: Tensor) -> Tensor:
    return _float64(window, window.shape[0])


@torch.library.register_fake("mfac::gram")
def _(window: Tensor) -> Tensor:
    return _float64(window, window.shape[0], window.shape[0])


@torch.library.register_fake("mfac::whitened_norms")
def _(window: Tensor, inverse_factor: Tensor, single: bool) -> tuple[Tensor, Tensor]:
    return _float64(window, window.shape[1]), _float64(window, window.shape[1])


@torch.library.register_fake("mfac::window_dot")
def _(window: Tensor, vectors: Tensor, scales: Tensor | None = None) -> Tensor:
    return _float64(vectors, vectors.shape[0], window.shape[0])


@torch.library.register_fake("mfac::window_push_")
def _(window: Tensor, row: int, gradient: Tensor, scales: Tensor | None = None) -> Tensor:
    return _float64(gradient, window.shape[0])


@torch.library.register_fake("mfac::topk_dot")
def _(values: Tensor, indices: Tensor, vectors: Tensor, block_size: int) -> Tensor:
    return _float64(vectors, vectors.shape[0], values.shape[0])


@torch.library.register_fake("mfac::topk_push_")
def _(
    values: Tensor,
    indices: Tensor,
    error: Tensor,
    row: int,
    gradient: Tensor,
    block_size: int,
    boundaries: Tensor | None = None,
) -> Tensor:
    return _float64(gradient, values.shape[0])


@torch.library.register_fake("mfac::capacitance_replace_")
def _(inverse: Tensor, gram: Tensor, row: int, products: Tensor, shift: float) -> Tensor:
    return _float64(products, 1)


@torch.library.register_fake("mfac::capacitance_solve")
def _(inverse: Tensor, gram: Tensor, vectors: Tensor, shift: float) -> tuple[Tensor, Tensor]:
    return torch.empty_like(vectors), _float64(vectors, 1)


@torch.library.register_fake("mfac::block_factor")
def _(window: Tensor, block_size: int, damping: float, num_terms: float) -> tuple[Tensor, Tensor]:
    blocks, order = _block_order(window, block_size)
    return _float64(window, blocks, order, order), window.new_empty((blocks,), dtype=torch.int64)


@torch.library.register_fake("mfac::block_ihvp")
def _(window: Tensor, factors: Tensor, vectors: Tensor, block_size: int, damping: float, num_terms: float) -> Tensor:
    return torch.empty_like(vectors)


@torch.library.register_fake("mfac::block_matvec")
def _(window: Tensor, vectors: Tensor, block_size: int, damping: float, num_terms: float) -> Tensor:
    return torch.empty_like(vectors)


@torch.library.register_fake("mfac::block_inverse_diagonal")
def _(window: Tensor, factors: Tensor, block_size: int, damping: float, num_terms: float) -> Tensor:
    return _float64(window, window.shape[1])


@torch.library.register_fake("mfac::obs_saliency")
def _(weights: Tensor, inverse_diagonal: Tensor) -> Tensor:
    return _float64(weights, weights.shape[0])


@torch.library.register_fake("mfac::nm_mask")
def _(scores: Tensor, keep: int, group: int) -> Tensor:
    return scores.new_empty(scores.shape, dtype=torch.bool)


@torch.library.register_fake("mfac::obs_eliminate")
def _(
    weight: Tensor,
    inverse: Tensor,
    dropped: Tensor,
    count: int,
    keep: int,
    group: int,
    scales: Tensor | None = None,
    zeros: Tensor | None = None,
    levels: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    rows, n = weight.shape
    order = weight.new_empty((rows, count), dtype=torch.int64)
    return order, _float64(weight, rows, count), _float64(weight, rows, n)


@torch.library.register_fake("mfac::restricted_solve")
def _(matrix: Tensor, target: Tensor, kept: Tensor) -> Tensor:
    return _float64(target, *target.shape)
