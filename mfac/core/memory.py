"""How much memory a process may still take, so that too large a request is refused at once."""

from __future__ import annotations

import ctypes
import resource
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch

GIB = 1 << 30


def available_bytes(device: torch.device) -> int | None:
    """Memory that is free for this process; None where that cannot be told.

    Args:
        device: Of the CPU the least of what the system has, what the control group allows, and what
            the limit of the process's address space leaves; of a GPU what its driver says is free.

    Returns:
        Bytes.
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    found = [limit for limit in (_of_system(), _of_group(), _of_process()) if limit is not None]
    return min(found) if found else None


def release_freed() -> None:
    """Gives memory that was freed back to the system, where the C library keeps it for itself.

    glibc keeps what is freed below its largest piece in use. Two phases of a run want pieces of
    different sizes, and what the first has freed would add to what the process takes.
    Milliseconds; nothing on other C libraries.
    """
    trim = _trim()
    if trim is not None:
        trim(0)


@cache
def _trim() -> Callable[[int], int] | None:
    try:
        found: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # of another library, or of another system
        return None
    return found


def _of_system() -> int | None:
    for line in _lines("/proc/meminfo"):
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _of_group() -> int | None:
    limit, used = _lines("/sys/fs/cgroup/memory.max"), _lines("/sys/fs/cgroup/memory.current")
    if not limit or not used or limit[0] == "max":
        return None
    statistics = dict(line.split() for line in _lines("/sys/fs/cgroup/memory.stat"))
    return int(limit[0]) - int(used[0]) + int(statistics.get("inactive_file", 0))  # which the system can take back


def _of_process() -> int | None:
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    used = _lines("/proc/self/statm")
    if limit == resource.RLIM_INFINITY or not used:
        return None
    return limit - int(used[0].split()[0]) * resource.getpagesize()


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []
