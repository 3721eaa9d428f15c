"""Four processes that speak gloo, started once, and what tests have them do: `Processes.run`."""

from __future__ import annotations

import datetime
import os
import socket
import traceback
from collections.abc import Callable, Generator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

SIZE = 4
PRELOADED = (
    *("torch", "torch._dynamo", "torch.distributed.tensor.parallel", "torch.distributed.fsdp"),
    *("torch.distributed.checkpoint.state_dict", "torch.nn.parallel"),
)
"""What the processes need and takes seconds to import: they are forked from one that has it."""

MESHES: dict[str, DeviceMesh] = {}
"""In each process: "four", of all; "two", of 0 and 1 or of 2 and 3; "square", 2 x 2."""


class Processes:
    """Processes that wait for functions to run.

    Args:
        size: How many.
        timeout: Of their process group, in seconds.
    """

    def __init__(self, size: int = SIZE, timeout: float = 60.0) -> None:
        context = mp.get_context("forkserver")
        context.set_forkserver_preload(list(PRELOADED))
        self._ours, theirs = zip(*(context.Pipe() for _ in range(size)), strict=True)
        port = free_port()
        self._all = [
            context.Process(target=_serve, args=(rank, size, port, timeout, theirs[rank]), daemon=True)
            for rank in range(size)
        ]
        for process in self._all:
            process.start()
        for pipe in theirs:
            pipe.close()  # so that a process that dies is heard of

    def run(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        """What a function of a module of tests returns in each process.

        A process that fails makes this fail.
        """
        found = self.outcomes(function, *args)
        failed = [f"rank {rank}: {value[-2000:]}" for rank, (done, value) in enumerate(found) if not done]
        assert not failed, "\n".join(failed)
        return [value for _, value in found]

    def outcomes(self, function: Callable[..., Any], *args: Any, timeout: float = 100.0) -> list[tuple[bool, Any]]:
        """Likewise; of each process whether it has done it, and the value or what went wrong."""
        for pipe in self._ours:
            pipe.send((function, args))
        found: list[tuple[bool, Any]] = []
        for pipe in self._ours:
            try:
                found.append(pipe.recv() if pipe.poll(timeout) else (False, "no answer"))
            except EOFError:
                found.append((False, "died"))
        return found

    def end(self) -> None:
        for process in self._all:
            process.kill()
            process.join()


@contextmanager
def two_processes() -> Generator[Processes]:
    """Two processes that also find modules by the name `tests.`; ended afterwards."""
    path = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[1]), path])
    processes = Processes(2)
    try:
        yield processes
    finally:
        processes.end()
        os.environ["PYTHONPATH"] = path


def _serve(rank: int, size: int, port: int, timeout: float, pipe: Connection) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=size, timeout=datetime.timedelta(seconds=timeout))
    if size == SIZE:
        MESHES["four"] = init_device_mesh("cpu", (4,))
        MESHES["square"] = init_device_mesh("cpu", (2, 2), mesh_dim_names=("outer", "inner"))
        MESHES["two"] = MESHES["square"]["inner"]
    while True:
        try:
            function, args = pipe.recv()
        except EOFError:
            return
        torch.manual_seed(0)
        try:
            pipe.send((True, function(*args)))
        except BaseException:  # also what pytest.raises raises
            pipe.send((False, traceback.format_exc()))


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
