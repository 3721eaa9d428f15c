"""Which devices there are kernels for, what each can do, and whether tensors are on one."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from mfac import _C


@dataclass(frozen=True)
class Capabilities:
    """What the kernels of a device can do and ask for.

    Attributes:
        defers: Whether a step does not wait for the numbers that it computes: the host reads them
            at the next.
        packet_bytes: Rows begin at multiples of so many bytes.
        keeps_boundaries: Whether kernels read of a sparse row one tile of columns at a time, and
            want to know where each begins.
    """

    defers: bool
    packet_bytes: int
    keeps_boundaries: bool


_CPU = Capabilities(defers=False, packet_bytes=1, keeps_boundaries=False)
_GPU = Capabilities(defers=True, packet_bytes=_C.limits()["packet_bytes"], keeps_boundaries=True)


def capabilities(device: torch.device) -> Capabilities:
    """What a device can do; the one place that decides it."""
    return _CPU if device.type == "cpu" else _GPU


def check_fits(names: str, nbytes: int, device: torch.device) -> None:
    """Refuses what the machine's memory cannot hold, before the system ends the process for it.

    Args:
        names: What made it so large, for the message.
        nbytes: Bytes wanted.
        device: Where. Of a GPU torch's own error says it in time.

    Raises:
        MemoryError: If it is more than there is in the machine.
    """
    if device.type != "cpu" or not hasattr(os, "sysconf"):
        return
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if nbytes > there:
        raise MemoryError(
            f"Parameters {names} should leave a window that the {there / 1e9:.1f} GB of this machine can hold. "
            f"Found {nbytes / 1e9:.1f} GB. Rows in 16 or 8 bits, a density below 1 or fewer rows take less."
        )


def check_device(name: str, device: torch.device) -> None:
    """Accepts the devices that have kernels.

    Args:
        name: The parameter's name.
        device: What was given for it.

    Raises:
        ValueError: If there are no kernels for `device`.
    """
    if device.type == "cuda" and _C.build_info()["cuda_toolkit"] is None:
        raise ValueError(
            f"Parameter `{name}` should be on the CPU: this installation of mfac has CPU kernels only. "
            f"Found device {device}. Where a CUDA toolkit is, MFAC_CUDA=1 pip install --no-build-isolation . builds "
            "the CUDA kernels too."
        )
    if device.type not in {"cpu", "cuda"}:
        raise ValueError(f"Parameter `{name}` should be on the CPU or a CUDA GPU. Found device {device}.")


def usable_device(name: str, device: str | torch.device) -> torch.device:
    """A device that memory can be asked of, with its number.

    Args:
        name: The parameter's name.
        device: What was given for it.

    Returns:
        The device; of "cuda" the current one.

    Raises:
        RuntimeError: If it is a GPU and torch finds none.
        ValueError: If there are no kernels for it.
    """
    found = torch.device(device)
    check_device(name, found)
    if found.type != "cuda":
        return found
    if not torch.cuda.is_available():
        why = "was built without CUDA" if torch.version.cuda is None else "finds no GPU, or no driver for it"
        raise RuntimeError(f"Parameter `{name}` should be a device that is there. Found {found}: this torch {why}.")
    return found if found.index is not None else torch.device("cuda", torch.cuda.current_device())


def check_same_device(name: str, device: torch.device, expected: torch.device) -> None:
    """Refuses what lies on another device than the rest.

    Args:
        name: The parameter's name.
        device: Where it lies.
        expected: Where the rest does.

    Raises:
        ValueError: If they differ.
    """
    if device != expected:
        raise ValueError(f"Parameter `{name}` should be on device {expected}. Found {device}.")
