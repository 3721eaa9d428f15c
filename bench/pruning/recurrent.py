"""The GRU that has to remember: share of letters recalled after pruning, without training after."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from typing import Any

import mfac
from bench.pruning.table import Table
from bench.recurrent import letter_batches, loss_fn, recalled, train_copier

METHODS: dict[str, dict[str, Any]] = {
    "default": {},
    "per sample": {"per_sample": True},
    "checked refits": {"num_gradients": 512, "step_check": True, "refits": 3},
    "no compensation": {"compensation": "none"},
    "magnitude": {"saliency": "magnitude", "compensation": "none"},
}


def table(sparsities: Sequence[float], methods: Sequence[str], networks: int, settings: dict[str, Any]) -> None:
    """Prints the table.

    Args:
        sparsities: Lines.
        methods: Of `METHODS`.
        networks: How many, trained from different seeds.
        settings: Of `mfac.prune`, besides the method's.
    """
    nets = [train_copier(seed=seed) for seed in range(networks)]
    print(f"GRU with {sum(p.numel() for p in nets[0].parameters())} parameters, letters recalled in %. Dense", end=" ")
    print(" ".join(f"{recalled(net):.1f}" for net in nets))
    lines = Table(["sparsity", "method", "recalled [%]", "time [s]"], [0, 15, 24, 0])
    data = letter_batches(4096, 16, seed=7)
    for sparsity in sparsities or (0.5, 0.7):
        for method in methods or METHODS:
            found = []
            start = time.perf_counter()
            for net in nets:
                model = copy.deepcopy(net)
                mfac.prune(model, loss_fn, data, sparsity, **{**settings, **METHODS[method]})
                found.append(recalled(model))
            seconds = (time.perf_counter() - start) / len(nets)
            lines.row(f"{sparsity:.0%}", method, " ".join(f"{x:.1f}" for x in found), f"{seconds:.0f}")
