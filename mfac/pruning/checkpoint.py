"""A run on disk after each stage, so that a stopped run goes on and ends as an unstopped one."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mfac.gradients.naming import named_parameters
from mfac.pruning.run import Run

_FILE = "run.pt"
_FORMAT = 1


@dataclass(frozen=True)
class Checkpoint:
    """A folder with the state of one run.

    The state is written to a file beside and renamed, so that there is a whole one at any moment.

    Attributes:
        folder: Made if it is not there.
        identity: What has to be the same for a run to go on, by name.
    """

    folder: Path
    identity: dict[str, str]

    @classmethod
    def of(cls, folder: Path, arguments: dict[str, str], model: nn.Module) -> Checkpoint:
        """The checkpoint of a run that has not begun.

        Args:
            folder: Where.
            arguments: What was asked for, in words.
            model: As it is given to the run, before anything is changed.

        Returns:
            The checkpoint. O(parameters) to read them all.
        """
        folder.mkdir(parents=True, exist_ok=True)
        return cls(folder, {**arguments, **_model_identity(model)})

    def load(self) -> dict[str, Any] | None:
        """The state of the run that was stopped.

        Returns:
            The state; None where there is none.

        Raises:
            ValueError: If it cannot be read, or is that of another run, naming the first
                difference.
        """
        path = self.folder / _FILE
        if not path.exists():
            return None
        try:
            saved: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # of a file that is none of ours: whatever reading it runs into
            raise ValueError(
                f"Parameter `checkpoint` should be a folder whose run can be read. Found {str(path)!r}, which cannot "
                f"({type(error).__name__}); without the file the run begins anew."
            ) from error
        if not isinstance(saved, dict) or saved.get("format") != _FORMAT or not {"identity", "state"} <= saved.keys():
            version = saved.get("format") if isinstance(saved, dict) else type(saved).__name__
            raise ValueError(
                f"Parameter `checkpoint` should be a folder of this version's runs. Found {str(path)!r} of format "
                f"{version}."
            )
        before = saved["identity"]
        for name in sorted({*before, *self.identity}):
            if before.get(name) != self.identity.get(name):
                raise ValueError(
                    f"Parameter `checkpoint` should be a folder of the same run. Found in {str(self.folder)!r} one "
                    f"that began with another {name}: "
                    f"{_difference(before.get(name), self.identity.get(name))}."
                )
        state: dict[str, Any] = saved["state"]
        return state

    def save(self, state: dict[str, Any]) -> None:
        """Replaces the state, at once or not at all.

        Args:
            state: Tensors, numbers, strings, and lists and dicts of these.
        """
        beside = self.folder / f"{_FILE}.{os.getpid()}"
        with beside.open("wb") as file:
            torch.save({"format": _FORMAT, "identity": self.identity, "state": state}, file)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(self.folder / _FILE)

    def save_run(self, run: Run) -> None:
        """Writes what a run's next stage needs.

        Args:
            run: Between two stages.
        """
        settings = run.settings
        chosen = {"num_gradients": settings.rank, "stages": settings.total_stages}
        self.save({"chosen": chosen, "run": run.state_dict()})


def _model_identity(model: nn.Module) -> dict[str, str]:
    """Names and shapes of the parameters, and a digest of all numbers, buffers among them."""
    digest = hashlib.sha256()
    parameters = named_parameters(model)
    for tensor in (*parameters.values(), *model.buffers()):
        digest.update(_bytes_of(tensor))
    return {
        "model": ", ".join(f"{name} {list(p.shape)} {p.dtype}" for name, p in parameters.items()),
        "state of the model's weights and buffers": f"SHA-256 {digest.hexdigest()}",
    }


def _difference(before: str | None, now: str | None) -> str:
    """Two values in an error; of long ones the part where they begin to differ."""
    first, second = str(before), str(now)
    if len(first) + len(second) > 400:
        same = next((i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), 0)
        begin = max(0, same - 60)
        first, second = (f"... {text[begin : begin + 160]} ..." for text in (first, second))
    return f"{first}, now {second}"


def _bytes_of(tensor: Tensor) -> Any:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy() if flat.numel() else b""
