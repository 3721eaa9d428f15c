"""Which devices there are kernels for, and whether tensors are on the same one."""

from __future__ import annotations

import torch

from mfac import _C


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
