"""What the diagonal of F⁻¹ costs on gradients of a network, where noise says too little.

    python -m bench.diagonal     about four minutes

A ResNet-20 (269434 parameters) is trained on Fashion-MNIST for 100 steps of SGD; then 256
gradients, of 16 images each, make the window. Beside it one of noise, and one of heavy-tailed noise
(Student's t with three degrees of freedom). For every λ: milliseconds of
`EmpiricalFisher(...).inverse_diagonal()`; how much longer the paper's recurrence takes; how many of
the columns are computed in float64; and the worst relative error of an entry, of both, against
float64.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

import mfac
from bench.fashion import load_fashion_mnist
from bench.peers.tasks import ResNet20
from mfac.bench.recurrence import StaticRecurrence
from mfac.bench.timing import describe_machine, medians
from mfac.core import ops

RANK, BATCH_SIZE, TRAINING_STEPS = 256, 16, 100
DAMPINGS = (1e-7, 1e-5, 1e-3, 1e-1)


def loss_fn(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def network_gradients() -> Tensor:
    """[256, 269434]."""
    data = load_fashion_mnist().subset(10_000)
    torch.manual_seed(0)
    model = ResNet20()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(TRAINING_STEPS):
        chosen = torch.randint(len(data.train_images), (128,))
        optimizer.zero_grad()
        loss_fn(model, (data.train_images[chosen], data.train_labels[chosen])).backward()
        optimizer.step()
    batches = zip(data.train_images.split(BATCH_SIZE), data.train_labels.split(BATCH_SIZE), strict=True)
    return mfac.collect_gradients(model, loss_fn, batches, num_gradients=RANK)


def diagonal_in_float64(grads: Tensor, damping: float) -> Tensor:
    rows = grads.double()
    lower = torch.linalg.cholesky(rows @ rows.T + RANK * damping * torch.eye(RANK, dtype=torch.float64))
    whitened = torch.linalg.solve_triangular(lower, rows, upper=False)
    return (1 - whitened.square_().sum(0)) / damping


@contextmanager
def columns_in_float64() -> Generator[dict[str, int], None, None]:
    """Counts the columns that the operators are given to compute in float64."""
    counts = {"whitened_norms": 0}
    norms = ops.whitened_norms

    def counting_norms(window: Tensor, inverse_factor: Tensor, single: bool) -> tuple[Tensor, Tensor]:
        counts["whitened_norms"] += 0 if single else window.shape[1]
        return norms(window, inverse_factor, single)

    ops.whitened_norms = counting_norms
    try:
        yield counts
    finally:
        ops.whitened_norms = norms


def worst_error(found: Tensor, expected: Tensor) -> float:
    return float(((found - expected) / expected).abs().max())


def report(name: str, grads: Tensor, damping: float) -> str:
    expected = diagonal_in_float64(grads, damping)
    with columns_in_float64() as counts:
        error = worst_error(mfac.EmpiricalFisher(grads, damping).inverse_diagonal(), expected)
    of_paper = StaticRecurrence(grads, damping, with_diagonal=True).diagonal
    assert of_paper is not None
    times = medians(
        {
            "ours": lambda: mfac.EmpiricalFisher(grads, damping).inverse_diagonal(),
            "paper": lambda: StaticRecurrence(grads, damping, with_diagonal=True),
        },
        rounds=3,
    )
    seconds, paper = times["ours"], times["paper"]
    in_float64 = 100 * counts["whitened_norms"] / grads.shape[1]
    return (
        f"{name:<12} {damping:8.0e} {1e3 * seconds:9.0f} {paper / seconds:9.1f} {in_float64:9.2f} %"
        f" {error:10.1e} {worst_error(of_paper, expected):10.1e}"
    )


def main() -> None:
    torch.set_num_threads(2)
    print(describe_machine())
    grads = network_gradients()
    dim = grads.shape[1]
    windows = {
        "ResNet-20": grads,
        "noise": torch.randn(RANK, dim),
        "t, 3 degrees": torch.distributions.StudentT(3.0).sample((RANK, dim)),
    }
    print(f"m = {RANK}, d = {dim}")
    print("window              λ        ms   paper /   columns        error   paper's")
    print("                                     ours  in float64")
    for name, window in windows.items():
        for damping in DAMPINGS if name == "ResNet-20" else DAMPINGS[1:2]:
            print(report(name, window, damping), flush=True)


if __name__ == "__main__":
    main()
