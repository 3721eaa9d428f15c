"""A pretrained convolutional network loses 95 % of its weights in one call, without training."""

from __future__ import annotations

import torch

import mfac
from demo.digits import load_mnist
from demo.networks import accuracy, load_pretrained_digit_cnn
from demo.pruning import cross_entropy, shuffled_batches


def main() -> None:
    digits = load_mnist()
    model = load_pretrained_digit_cnn()
    print(f"dense: {accuracy(model, digits.test_images, digits.test_labels):.2f} %")
    report = mfac.prune(
        model,
        cross_entropy,
        shuffled_batches(digits, batch_size=16),
        sparsity=0.95,
        num_gradients=128,  # half of the default: half of the time
        stages=6,
        progress=lambda step: (
            print(f"  step {step.step} of {step.total_steps}: {step.sparsity:.1%} zero", flush=True)
            if step.step % 4 == 0
            else None
        ),
    )
    print(report)
    print(f"pruned: {accuracy(model, digits.test_images, digits.test_labels):.2f} %")


if __name__ == "__main__":
    torch.set_num_threads(2)
    main()
