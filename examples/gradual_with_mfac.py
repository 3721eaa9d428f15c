"""Training with MFAC, and pruning meanwhile: the sparsity rises on a cubic schedule, and the zeros stay zero."""

from __future__ import annotations

import torch

import mfac
from demo.digits import load_mnist
from demo.networks import MLP, accuracy
from demo.pruning import cross_entropy, shuffled_batches

FINAL, EPOCHS = 0.95, 4
PRUNE_EVERY, LAST_PRUNED = 50, 350  # optimizer steps; after the last the network settles


def main() -> None:
    torch.manual_seed(0)
    digits = load_mnist().subset(16000)
    model = MLP()
    optimizer = mfac.MFAC(model.parameters(), lr=0.01, rank=64, damping=1e-3, momentum=0.9)
    report: mfac.PruningReport | None = None
    step, calibration = 0, shuffled_batches(digits, batch_size=16)
    for epoch in range(EPOCHS):
        for batch in shuffled_batches(digits, batch_size=128, seed=epoch):
            optimizer.zero_grad()
            cross_entropy(model, batch).backward()
            optimizer.step()
            step += 1
            if report is not None:
                report.apply_(model)
            if step % PRUNE_EVERY == 0 and step <= LAST_PRUNED:
                sparsity = FINAL * (1 - (1 - step / LAST_PRUNED) ** 3)
                report = mfac.prune(model, cross_entropy, calibration, sparsity, num_gradients=64, stages=1)
                correct = accuracy(model, digits.test_images, digits.test_labels)
                print(f"  step {step}: {report.sparsity:.1%} zero, {correct:.2f} %", flush=True)
    weights = [p for p in model.parameters() if p.dim() > 1]
    zeros = sum(int((p == 0).sum()) for p in weights) / sum(p.numel() for p in weights)
    print(f"after training: {zeros:.1%} zero, {accuracy(model, digits.test_images, digits.test_labels):.2f} %")


if __name__ == "__main__":
    main()
