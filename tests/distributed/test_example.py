"""The example of several processes runs, on two of them."""

import pytest
import torch.distributed as dist
from several import MESHES, Processes

from examples import several_processes

pytestmark = pytest.mark.cpu_only("processes that speak gloo")


def shown(folder: str) -> tuple[float, float]:
    return several_processes.run(MESHES["two"], f"{folder}/{dist.get_rank() // 2}", steps=20)


def test_a_resumed_run_ends_as_the_one_that_was_not_stopped(four: Processes, tmp_path):
    for last, again in four.run(shown, str(tmp_path)):
        assert last == again < 0.8  # the logarithm of two is where it began
