"""Training with MFAC and pruning meanwhile: sparsity rises on a cubic schedule, zeros stay zero."""

from __future__ import annotations

import torch

import mfac
from demo.digits import load_mnist
from demo.networks import MLP, accuracy
from demo.pruning import cross_entropy, shuffled_batches

FINAL, EPOCHS = 0.95, 4
EVERY, LAST = 50, 350  # optimizer steps; after the last of those that prune the network settles


def main() -> None:
    torch.manual_seed(0)
    digits = load_mnist().subset(16000)
    model = MLP()
    optimizer = mfac.MFAC(model.parameters(), lr=0.01, rank=64, damping=1e-3, momentum=0.9)
    calibration = shuffled_batches(digits, batch_size=16)
    pruner = mfac.Pruner(
        model, optimizer, cross_entropy, calibration, FINAL, begin=EVERY, every=EVERY, end=LAST, num_gradients=64
    )
    for epoch in range(EPOCHS):
        for batch in shuffled_batches(digits, batch_size=128, seed=epoch):
            optimizer.zero_grad()
            cross_entropy(model, batch).backward()
            optimizer.step()
            pruner.step()
            if pruner.count in pruner.events:
                correct = accuracy(model, digits.test_images, digits.test_labels)
                print(f"  step {pruner.count}: {pruner.report.sparsity:.1%} zero, {correct:.2f} %", flush=True)
    zeros = mfac.Masks.from_zeros(model).sparsity
    print(f"after training: {zeros:.1%} zero, {accuracy(model, digits.test_images, digits.test_labels):.2f} %")


if __name__ == "__main__":
    main()
