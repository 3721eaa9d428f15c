"""Several processes share the gradients, and end with the masks and weights of one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from models import batches, classifier, cross_entropy
from several import Processes

import mfac

pytestmark = pytest.mark.cpu_only("processes that speak gloo")

SETTINGS = {"sparsity": 0.8, "stages": 2, "recomputations": 2}
CASES = [
    {"num_gradients": 23, "compensation": "joint"},
    {"num_gradients": 23},
    {"num_gradients": 30, "per_sample": True},
    {"num_gradients": 16, "gradients": "bf16"},
]


def prune_all() -> list[dict[str, Any]]:
    found = []
    for case in CASES:
        model, calls = classifier(), []

        def loss(model, batch, calls=calls):
            calls.append(1)
            return cross_entropy(model, batch)

        report = mfac.prune(model, loss, batches(30), process_group=dist.group.WORLD, mode="eval", **SETTINGS, **case)
        found.append({"masks": report.masks, "weights": model.state_dict(), "calls": len(calls)})
    return found


def fail_on_one() -> None:
    rank = dist.get_rank()

    def loss(model, batch):
        return cross_entropy(model, batch) * (float("nan") if rank == 1 else 1)

    with pytest.raises(ValueError if rank == 1 else RuntimeError, match="finite loss"):
        mfac.prune(
            classifier(), loss, batches(30), process_group=dist.group.WORLD, num_gradients=8, stages=1, mode="eval"
        )


def test_two_ranks_give_the_masks_of_one(two: Processes):
    ranks = two.run(prune_all)
    for number, case in enumerate(CASES):
        model, calls = classifier(), []

        def loss(model, batch, calls=calls):
            calls.append(1)
            return cross_entropy(model, batch)

        report = mfac.prune(model, loss, batches(30), mode="eval", **SETTINGS, **case)
        for found in (rank[number] for rank in ranks):
            assert all(torch.equal(found["masks"][name], mask) for name, mask in report.masks.items())
            assert all(torch.equal(found["weights"][name], value) for name, value in model.state_dict().items())
            if case.get("compensation") == "joint":  # which asks for no loss beside the gradients
                assert found["calls"] <= len(calls) / 2 + 4  # each computes half; the first batch may be computed twice


def test_all_ranks_hear_of_a_failure(two: Processes):
    two.run(fail_on_one)
