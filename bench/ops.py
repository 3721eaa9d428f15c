"""Each operator against what ATen would do in its place: what it must gain to be ours.

python -m bench.ops
"""

from __future__ import annotations

import torch
from torch import Tensor

from mfac import ops
from mfac.bench.timing import check, describe_machine, medians, relative_error
from mfac.dual import column_tiles


def show(op: str, shape: str, ours: float, aten: dict[str, float], work: str) -> None:
    others = "  ".join(f"{name} {seconds * 1e3:.2f} ms = {seconds / ours:.1f} x" for name, seconds in aten.items())
    print(f"{op:<18} {shape:<34} {ours * 1e3:8.2f} ms  {work:<14} {others}")


def gram(rank: int = 256, dim: int = 272_474) -> None:
    window = torch.randn(rank, dim)

    def tiles() -> Tensor:
        result = torch.zeros(rank, rank, dtype=torch.float64)
        for tile in window.split(4096, dim=1):
            wide = tile.double()
            result.addmm_(wide, wide.T)
        return result

    check("gram", relative_error(ops.gram(window), tiles()), 1e-14)
    t = medians({"ours": lambda: ops.gram(window), "tiles of addmm_": tiles, "float32 mm": lambda: window @ window.T})
    ours = t.pop("ours")
    show("gram", f"m={rank} d={dim} float32", ours, t, f"{rank**2 * dim / ours / 1e9:.0f} GFLOP/s")


def passes(rank: int = 256, dim: int = 272_474) -> None:
    window, v = torch.randn(rank, dim), torch.randn(1, dim)
    c = torch.randn(1, rank, dtype=torch.float64)
    out, wide = torch.empty(1, dim), window.double()
    check("window_dot", relative_error(ops.window_dot(window, v)[0], wide @ v[0].double()), 1e-14)
    check("window_combine_", relative_error(ops.window_combine_(out, window, c, 0.0, 1.0)[0], wide.T @ c[0]), 1e-7)
    t = medians(
        {
            "dot": lambda: ops.window_dot(window, v),
            "combine": lambda: ops.window_combine_(out, window, c, 0.0, 1.0),
            "dot, float32 mv": lambda: window @ v[0],
            "dot, widened mv": lambda: window.double() @ v[0].double(),
            "combine, float32 mv": lambda: window.T @ c[0].float(),
            "combine, widened mv": lambda: window.double().T @ c[0],
            "streaming read": lambda: window.sum(),
        }
    )
    shape = f"m={rank} d={dim} float32"
    for op, name in (("window_dot", "dot"), ("window_combine_", "combine")):
        others = {key.removeprefix(f"{name}, "): value for key, value in t.items() if key.startswith(f"{name},")}
        show(
            op,
            shape,
            t[name],
            {**others, "streaming read": t["streaming read"]},
            f"{window.nbytes / t[name] / 1e9:.1f} GB/s",
        )


def many_vectors(rank: int = 256, dim: int = 100_000) -> None:
    window = torch.randn(rank, dim)
    for k in (1, 2, 4, 8, 16, 32):
        v = torch.randn(k, dim)
        t = medians(
            {"ours": lambda v=v: ops.window_dot(window, v), "tiles of addmm_": lambda v=v: gemm_tiles(window, v)},
            rounds=3,
        )
        ours = t.pop("ours")
        show("window_dot", f"m={rank} d={dim} k={k}", ours, t, "")


def gemm_tiles(window: Tensor, v: Tensor) -> Tensor:
    result = torch.zeros(v.shape[0], window.shape[0], dtype=torch.float64)
    for columns, tile in column_tiles(window):
        result.addmm_(v[:, columns].double(), tile.T)
    return result


def capacitance(rank: int = 1024) -> None:
    rows = torch.randn(rank, 2 * rank, dtype=torch.float64)
    matrix, shift = ops.gram(rows), 1.0
    inverse = torch.linalg.inv(matrix + shift * torch.eye(rank, dtype=torch.float64)).contiguous()
    products, a = matrix[:, 0].clone(), inverse.clone()

    def plain() -> None:
        column = a[:, 0].clone()
        a.addr_(column, column, alpha=-1 / float(column[0]))
        y = a @ products
        a.addr_(y, y, alpha=1 / float(products[0] + shift))

    t = medians(
        {
            "ours": lambda: ops.capacitance_replace_(inverse, matrix, 0, products, shift),
            "addr_, mv, addr_": plain,
            "Cholesky": lambda: torch.linalg.cholesky(matrix),
        },
        rounds=15,
    )
    ours = t.pop("ours")
    show("capacitance_rep..", f"m={rank}", ours, t, "")
    t = medians({"ours": lambda: ops.symmetric_matvec(matrix, products), "mv": lambda: matrix @ products}, rounds=15)
    ours = t.pop("ours")
    show("symmetric_matvec", f"m={rank}", ours, t, "")


def blocks(rank: int = 64, block_size: int = 128, count: int = 2048) -> None:
    dim, damping = block_size * count, 1e-2
    window = torch.randn(rank, dim) / block_size**0.5
    v = torch.randn(1, dim, dtype=torch.float64)
    factors, _ = ops.block_factor(window, block_size, damping, float(rank))

    def batched() -> tuple[Tensor, Tensor]:
        g = window.view(rank, count, block_size).transpose(0, 1).double()
        c = torch.baddbmm(rank * damping * torch.eye(rank, dtype=torch.float64).expand(count, -1, -1), g, g.mT)
        return torch.linalg.cholesky(c), g

    def batched_ihvp() -> Tensor:
        lower, g = plain
        x = v.view(count, block_size, 1)
        return ((x - g.mT @ torch.cholesky_solve(g @ x, lower)) / damping).view(-1)

    def batched_matvec() -> Tensor:
        g = plain[1]
        x = v.view(count, block_size, 1)
        return (damping * x + g.mT @ (g @ x) / rank).view(-1)

    def batched_diagonal() -> Tensor:
        lower, g = plain
        return ((1 - torch.linalg.solve_triangular(lower, g, upper=False).square().sum(1)) / damping).view(-1)

    plain = batched()
    check("block_factor", relative_error(factors, plain[0]), 1e-12)
    ours_ihvp = ops.block_ihvp(window, factors, v, block_size, damping, float(rank))[0]
    ours_diagonal = ops.block_inverse_diagonal(window, factors, block_size, damping, float(rank))
    check("block_ihvp", relative_error(ours_ihvp, batched_ihvp()), 1e-10)
    check("block_inverse_diagonal", relative_error(ours_diagonal, batched_diagonal()), 1e-10)
    t = medians(
        {
            "block_factor": lambda: ops.block_factor(window, block_size, damping, float(rank)),
            "block_ihvp": lambda: ops.block_ihvp(window, factors, v, block_size, damping, float(rank)),
            "block_matvec": lambda: ops.block_matvec(window, v, block_size, damping, float(rank)),
            "batched matvec": batched_matvec,
            "block_inv_diagonal": lambda: ops.block_inverse_diagonal(window, factors, block_size, damping, float(rank)),
            "batched factor": batched,
            "batched ihvp": batched_ihvp,
            "batched diagonal": batched_diagonal,
        }
    )
    shape = f"m={rank}, {count} blocks of {block_size}"
    for ours, aten in (
        ("block_factor", "factor"),
        ("block_ihvp", "ihvp"),
        ("block_matvec", "matvec"),
        ("block_inv_diagonal", "diagonal"),
    ):
        show(ours, shape, t[ours], {f"batched ATen {aten}": t[f"batched {aten}"]}, "")


def main() -> None:
    print(describe_machine())
    torch.manual_seed(0)
    for measure in (gram, passes, many_vectors, capacitance, blocks):
        measure()


if __name__ == "__main__":
    main()
