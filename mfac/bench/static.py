"""The static Fisher, whole and in diagonal blocks: Gram matrix, factor, diagonal and products."""

from __future__ import annotations

import torch
from torch import Tensor

from mfac.bench.measurement import BLOCK_SIZE, DAMPING, GEMM_DOUBLE, GEMM_SINGLE, READ, Measurement, Setting
from mfac.bench.recurrence import BatchedRecurrence, StaticRecurrence
from mfac.bench.timing import check, relative_error
from mfac.core import ops
from mfac.curvature.dual import column_tiles
from mfac.curvature.fisher import EmpiricalFisher

_MOST_BLOCKS = 2048
NETWORK_DAMPING = 1e-5  # gradients as they come, of norms about 1


def _plain_gram(grads: Tensor) -> Tensor:
    result = grads.new_zeros((grads.shape[0], grads.shape[0]), dtype=torch.float64)
    for _, tile in column_tiles(grads):
        result.addmm_(tile, tile.T)
    return result


def _plain_factor(grads: Tensor, damping: float) -> Tensor:
    rank = grads.shape[0]
    return torch.linalg.cholesky(_plain_gram(grads) + rank * damping * torch.eye(rank, dtype=torch.float64))


def _plain_diagonal(grads: Tensor, lower: Tensor, damping: float) -> Tensor:
    pieces = [
        torch.linalg.solve_triangular(lower, tile, upper=False).square_().sum(0) for _, tile in column_tiles(grads)
    ]
    return (1 - torch.cat(pieces)) / damping


def whole(setting: Setting) -> list[Measurement]:
    """`gram`, `EmpiricalFisher`, its diagonal and its products, against the paper's recurrence.

    Args:
        setting: Shapes and rounds.

    Returns:
        Four lines on gradients of a network, and one of the diagonal on noise.
    """
    gradients = setting.gradients
    print(f"factor and diagonal: {gradients.source}", flush=True)
    rank, dim = max(1, setting.rank // 2), setting.dim
    return [
        *_whole(setting, gradients.rows, NETWORK_DAMPING, ""),
        *(line for line in _whole(setting, setting.normal(rank, dim), DAMPING, ", noise") if "diagonal" in line.op),
    ]


def _check_fisher(grads: Tensor, v: Tensor, damping: float, paper: StaticRecurrence) -> None:
    fisher, lower = EmpiricalFisher(grads, damping), _plain_factor(grads, damping)
    wide, x = grads.double(), v.double()
    expected = (x - wide.T @ torch.cholesky_solve((wide @ x)[:, None], lower)[:, 0]) / damping
    check("gram", relative_error(ops.gram(grads), _plain_gram(grads)), 1e-12)
    check("ihvp", relative_error(fisher.ihvp(v), expected), 2e-7)
    check("inverse_diagonal", relative_error(fisher.inverse_diagonal(), _plain_diagonal(grads, lower, damping)), 2e-7)
    check("the paper's ihvp", relative_error(paper.ihvp(v), expected), 1e-3)


def _whole(setting: Setting, grads: Tensor, damping: float, name: str) -> list[Measurement]:
    rank, dim = grads.shape
    v = setting.normal(dim)
    fisher, lower = EmpiricalFisher(grads, damping), _plain_factor(grads, damping)
    paper = StaticRecurrence(grads, damping, with_diagonal=True)
    _check_fisher(grads, v, damping, paper)
    seconds, rates = setting.time(
        {
            "gram": lambda: ops.gram(grads),
            "factor": lambda: EmpiricalFisher(grads, damping).logdet(),
            "factor + diagonal": lambda: EmpiricalFisher(grads, damping).inverse_diagonal(),
            "ihvp": lambda: fisher.ihvp(v),
        },
        *(GEMM_DOUBLE, GEMM_SINGLE, READ),
    )
    others, _ = setting.time(
        {
            "gram": lambda: _plain_gram(grads),
            "factor": lambda: _plain_factor(grads, damping),
            "factor + diagonal": lambda: _plain_diagonal(grads, _plain_factor(grads, damping), damping),
            "ihvp": lambda: (v - grads.T @ torch.cholesky_solve((grads @ v)[:, None], lower.float())[:, 0]) / damping,
            "paper factor": lambda: StaticRecurrence(grads, damping),
            "paper factor + diagonal": lambda: StaticRecurrence(grads, damping, with_diagonal=True),
            "paper ihvp": lambda: paper.ihvp(v),
        },
        rounds=setting.slow_rounds,
    )
    half = float(rank**2 * dim)  # flops of the symmetric product, and of the triangular solve
    work = {"gram": half, "factor": half, "factor + diagonal": 2 * half, "ihvp": 2.0 * grads.nbytes}
    # K is computed in float64, nearly all columns of L⁻¹G in float32: at best so much time for
    # each.
    both = 2 / (1 / rates[GEMM_DOUBLE] + 1 / rates[GEMM_SINGLE])
    ceiling = {"gram": rates[GEMM_DOUBLE], "factor": rates[GEMM_DOUBLE], "factor + diagonal": both, "ihvp": rates[READ]}
    return [
        Measurement(
            *(op + name, rank, dim, "float32", seconds[op], work[op], ceiling[op]),
            unit="GB/s" if op == "ihvp" else "GFLOP/s",
            plain=others[op],
            paper=others.get(f"paper {op}"),
        )
        for op in seconds
    ]


class _BatchedBlocks:
    """Diagonal blocks in plain torch: batched products, Cholesky and solves in float64."""

    def __init__(self, grads: Tensor) -> None:
        rank = grads.shape[0]
        self.g = grads.view(rank, -1, BLOCK_SIZE).transpose(0, 1).double()  # [blocks, m, B]
        eye = torch.eye(rank, dtype=torch.float64).expand(self.g.shape[0], -1, -1)
        self.lower = torch.linalg.cholesky(torch.baddbmm(rank * DAMPING * eye, self.g, self.g.mT))

    def ihvp(self, v: Tensor) -> Tensor:
        x = v.view(-1, BLOCK_SIZE, 1)
        return ((x - self.g.mT @ torch.cholesky_solve(self.g @ x, self.lower)) / DAMPING).view(-1)

    def diagonal(self) -> Tensor:
        whitened = torch.linalg.solve_triangular(self.lower, self.g, upper=False)
        return ((1 - whitened.square().sum(1)) / DAMPING).view(-1)


def blocks(setting: Setting) -> list[Measurement]:
    """Diagonal blocks of 128: factor, products, diagonal, and all of it against the paper.

    Args:
        setting: Shapes and rounds.

    Returns:
        Four lines.
    """
    rank = min(max(1, setting.rank // 8), BLOCK_SIZE - 1)
    count = min(_MOST_BLOCKS, max(2, setting.dim // BLOCK_SIZE))
    dim, terms = count * BLOCK_SIZE, float(rank)
    grads, v = setting.normal(rank, dim).mul_(count**0.5), setting.normal(dim)
    wide = v.double()[None]
    plain = _BatchedBlocks(grads)
    factors, _ = ops.block_factor(grads, BLOCK_SIZE, DAMPING, terms)
    paper = BatchedRecurrence(grads, BLOCK_SIZE, DAMPING)
    found = ops.block_ihvp(grads, factors, wide, BLOCK_SIZE, DAMPING, terms)[0]
    check("block_factor", relative_error(factors.mT, plain.lower), 1e-12)
    check("block_ihvp", relative_error(found, plain.ihvp(wide)), 1e-10)
    diagonal = ops.block_inverse_diagonal(grads, factors, BLOCK_SIZE, DAMPING, terms)
    check("block_inverse_diagonal", relative_error(diagonal, plain.diagonal()), 1e-10)
    check("the paper's batched ihvp", relative_error(paper.ihvp(v), found), 1e-3)
    check("the paper's batched diagonal", relative_error(paper.diagonal.view(-1), diagonal), 1e-3)

    def ours() -> tuple[Tensor, Tensor]:
        fisher = EmpiricalFisher(grads, DAMPING, block_size=BLOCK_SIZE)
        return fisher.ihvp(v), fisher.inverse_diagonal()

    def batched() -> tuple[Tensor, Tensor]:
        fisher = _BatchedBlocks(grads)
        return fisher.ihvp(wide), fisher.diagonal()

    def recurrence() -> tuple[Tensor, Tensor]:
        fisher = BatchedRecurrence(grads, BLOCK_SIZE, DAMPING)
        return fisher.ihvp(v), fisher.diagonal

    seconds, rates = setting.time(
        {
            "block_factor": lambda: ops.block_factor(grads, BLOCK_SIZE, DAMPING, terms),
            "block_ihvp": lambda: ops.block_ihvp(grads, factors, wide, BLOCK_SIZE, DAMPING, terms),
            "block_inverse_diagonal": lambda: ops.block_inverse_diagonal(grads, factors, BLOCK_SIZE, DAMPING, terms),
            "block Fisher, all three": ours,
        },
        *(GEMM_DOUBLE, READ),
    )
    others, _ = setting.time(
        {
            "block_factor": lambda: _BatchedBlocks(grads),
            "block_ihvp": lambda: plain.ihvp(wide),
            "block_inverse_diagonal": plain.diagonal,
            "block Fisher, all three": batched,
            "paper": recurrence,
        },
        rounds=setting.slow_rounds,
    )
    half = float(rank**2 * dim)
    cholesky = count * rank**3 / 3
    work = {
        "block_factor": half + cholesky,
        "block_ihvp": float(grads.nbytes + factors.nbytes),
        "block_inverse_diagonal": half,
        "block Fisher, all three": 2 * half + cholesky,
    }
    return [
        Measurement(
            *(op, rank, dim, "float32", seconds[op], work[op], rates[READ if op == "block_ihvp" else GEMM_DOUBLE]),
            unit="GB/s" if op == "block_ihvp" else "GFLOP/s",
            plain=others[op],
            paper=others["paper"] if op.startswith("block F") else None,
        )
        for op in seconds
    ]
