"""A GRU learns to repeat letters and loses half of its weights, beside one pruned by magnitude."""

from __future__ import annotations

import copy

import mfac
from bench.recurrent import letter_batches, loss_fn, recalled, train_copier


def main() -> None:
    dense = train_copier(steps=1500)
    print(f"dense: {recalled(dense):.1f} % of the letters are repeated right")
    batches = letter_batches(2048, 16, seed=7)
    for name, options in (
        ("magnitude", {"saliency": "magnitude", "compensation": "none"}),
        ("mfac", {"num_gradients": 256, "stages": 4}),
    ):
        model = copy.deepcopy(dense)
        report = mfac.prune(model, loss_fn, batches, sparsity=0.5, **options)
        print(f"{name}: {report.sparsity:.0%} zero, {recalled(model):.1f} %")


if __name__ == "__main__":
    main()
