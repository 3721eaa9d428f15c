"""Peak memory of a method in a fresh process: `python -m bench.peers.memory NETWORK METHOD`.

The program prints bytes.
"""

from __future__ import annotations

import ctypes
import gc
import subprocess
import sys
from pathlib import Path

import torch
from torch import nn

from bench.peers.methods import BASELINE, METHODS
from bench.peers.tasks import load_tasks

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def measure_memory(network: str, method: str) -> int:
    """Bytes at the peak above what the process held before the method was made.

    Raises:
        RuntimeError: If the process failed; the message is its last line.
    """
    command = [sys.executable, "-m", "bench.peers.memory", network, method]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError((done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1])
    return int(done.stdout.splitlines()[-1])


def main() -> None:
    network, name = sys.argv[1:]
    torch.set_num_threads(2)
    task = load_tasks([network])[network]
    model, entry = task.build(), METHODS[name]
    entry.load()  # the library itself does not count
    warm_up(*task.batches[0], task.build())
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what was freed would be used again and not be seen
    before = _status("VmRSS")
    _CLEAR.write_text("5")  # the peak starts anew
    method = entry.make(model)
    for number, (images, labels) in enumerate(task.batches[:3]):
        method.step(images, labels, update=number < 2)
        if number == 0:
            method.fill()
    print(_status("VmHWM") - before)


def warm_up(images: torch.Tensor, labels: torch.Tensor, model: nn.Module) -> None:
    """A step of a network that is then forgotten: the baseline then holds the code and caches."""
    method = METHODS[BASELINE].make(model)
    method.step(images, labels, update=False)


def _status(name: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(f"{name}:"))
    return 1024 * int(line.split()[1])


if __name__ == "__main__":
    main()
