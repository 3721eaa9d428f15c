"""Several processes share the gradients, and end with the masks and weights of one."""

from __future__ import annotations

import os
import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from models import batches, classifier, cross_entropy

import mfac

pytestmark = pytest.mark.cpu_only("processes that speak gloo")

SETTINGS = {"sparsity": 0.8, "stages": 2, "recomputations": 2}
CASES = [
    {"num_gradients": 23, "compensation": "joint"},
    {"num_gradients": 23},
    {"num_gradients": 30, "per_sample": True},
    {"num_gradients": 16, "gradients": "bf16"},
]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def in_a_process(rank: int, size: int, port: int, function, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=size)
    try:
        function(rank, folder)
    finally:
        dist.destroy_process_group()


def prune_all(rank: int, folder: str) -> None:
    found = []
    for case in CASES:
        model, calls = classifier(), []

        def loss(model, batch, calls=calls):
            calls.append(1)
            return cross_entropy(model, batch)

        report = mfac.prune(model, loss, batches(30), process_group=dist.group.WORLD, mode="eval", **SETTINGS, **case)
        found.append({"masks": report.masks, "weights": model.state_dict(), "calls": len(calls)})
    torch.save(found, f"{folder}/{rank}.pt")


def fail_on_one(rank: int, folder: str) -> None:
    def loss(model, batch):
        return cross_entropy(model, batch) * (float("nan") if rank == 1 else 1)

    with pytest.raises(ValueError if rank == 1 else RuntimeError, match="finite loss"):
        mfac.prune(
            classifier(), loss, batches(30), process_group=dist.group.WORLD, num_gradients=8, stages=1, mode="eval"
        )


def test_two_ranks_give_the_masks_of_one(tmp_path):
    mp.spawn(in_a_process, (2, free_port(), prune_all, str(tmp_path)), nprocs=2)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
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


def test_all_ranks_hear_of_a_failure(tmp_path):
    mp.spawn(in_a_process, (2, free_port(), fail_on_one, str(tmp_path)), nprocs=2)
