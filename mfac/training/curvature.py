"""The Fisher that saliencies ask for in training: a live window's, or of gradients collected."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from mfac.core.checks.numbers import check_count
from mfac.curvature.damping import Damping, check_damping, relative
from mfac.curvature.fisher import EmpiricalFisher
from mfac.gradients.backward import GradientSource, LossFunction
from mfac.gradients.batches import BatchStream
from mfac.gradients.collecting import check_model_and_loss, gather_rows, resolve_mode
from mfac.gradients.vector import ParameterVector

DAMPING = relative(0.01)
"""What is taken where nothing is given, as in a run of pruning."""


class FisherSource:
    """Where the Fisher of a change comes from.

    Args:
        model: The model.
        optimizers: Of the training; the windows of `mfac.MFAC` among them serve first.
        loss_fn: As of `mfac.prune`, or None.
        data: Batches for it, gone through again and again, or None.
        num_gradients: m, where gradients are collected.
        damping: λ.

    Raises:
        TypeError: If a type is wrong.
        ValueError: If one of `loss_fn` and `data` is given alone, or a number is out of range.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: Sequence[Optimizer],
        loss_fn: LossFunction | None,
        data: Iterable[Any] | None,
        num_gradients: int,
        damping: Damping,
    ) -> None:
        if (loss_fn is None) != (data is None):
            raise ValueError("Parameters `loss_fn` and `data` should be given together. Found one of them.")
        self._model, self._loss_fn = model, loss_fn
        self._windowed = [optimizer for optimizer in optimizers if hasattr(optimizer, "held_gradients")]
        self._stream: BatchStream | None = None
        self._rank = check_count("num_gradients", num_gradients, least=1)
        self._damping = check_damping(damping)
        self._random = torch.Generator().manual_seed(0).get_state()
        if loss_fn is not None and data is not None:
            check_model_and_loss(model, loss_fn)
            with self._own_random():  # from the start: a loader may draw its order from torch's own generator
                self._stream = BatchStream(data)

    def check(self, parameters: dict[str, nn.Parameter]) -> None:
        """Refuses a training that has no gradients for a Fisher.

        Args:
            parameters: Name to parameter, of all that have masks.

        Raises:
            ValueError: If there are none, if no window has a parameter, or if the windows differ in
                rank.
        """
        if not self._windowed and self._stream is None:
            raise ValueError(
                "Parameter `saliency` needs gradients: train with mfac.MFAC, whose window has them, or give "
                "`loss_fn` and `data`. Found neither."
            )

        if self._stream is None:
            ranks = {
                id(parameter): group["rank"]
                for optimizer in self._windowed
                for group in optimizer.param_groups
                for parameter in group["params"]
            }
            missing = [name for name, parameter in parameters.items() if id(parameter) not in ranks]
            different = {ranks[id(parameter)] for parameter in parameters.values() if id(parameter) in ranks}
            if missing or len(different) > 1:
                found = f"no window for {missing}" if missing else f"windows of ranks {sorted(different)}"
                raise ValueError(
                    f"Parameter `saliency` needs gradients of all masked weights in windows of one rank. "
                    f"Found {found}: give `loss_fn` and `data`."
                )

    def fisher(self, parameters: dict[str, nn.Parameter], kept: Sequence[Tensor]) -> EmpiricalFisher:
        """F over the kept weights.

        Args:
            parameters: Name to parameter.
            kept: The mask of each, flat.

        Returns:
            F.

        Raises:
            ValueError: If the windows do not hold every parameter, or not the same steps.
        """
        if self._stream is None:
            return EmpiricalFisher(self._rows_of_windows(parameters, kept), self._damping)
        vector = ParameterVector(parameters, list(self._model.parameters()))
        assert self._loss_fn is not None
        source = GradientSource(self._model, self._loss_fn, vector, False)
        with self._own_random():
            mode = resolve_mode(self._model, self._loss_fn, self._stream, "auto")
            found = gather_rows(source, self._stream, self._rank, mode)
        return EmpiricalFisher(found[:, torch.cat(list(kept))].contiguous(), self._damping)

    def _rows_of_windows(self, parameters: dict[str, nn.Parameter], kept: Sequence[Tensor]) -> Tensor:
        """The windows' gradients of the kept weights, [m, n], in the weights' own coordinates."""
        held: dict[Tensor, Tensor] = {}
        for optimizer in self._windowed:
            held.update(optimizer.held_gradients())
        missing = [name for name, parameter in parameters.items() if parameter not in held]
        lengths = sorted({len(held[parameter]) for parameter in parameters.values() if parameter in held})
        if missing or len(lengths) != 1 or 0 in lengths:
            found = f"none for {missing}" if missing else f"windows of {lengths} gradients"
            raise ValueError(
                f"Parameter `optimizer` should hold gradients of the same steps for all masked weights, in windows of "
                f"one rank that are not spread over processes. Found {found}: give `loss_fn` and `data`."
            )
        pieces = zip(parameters.values(), kept, strict=True)
        return torch.cat([held[parameter][:, mask] for parameter, mask in pieces], 1)

    def state_dict(self) -> dict[str, Any]:
        """Where the stream of batches stands."""
        stream = None if self._stream is None else self._stream.state_dict()
        return {"stream": stream, "random": self._random}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up where another's stream of batches stood.

        Args:
            state: Of `state_dict`.

        Raises:
            ValueError: If the data does not yield as many batches as then.
        """
        if self._stream is not None and state["stream"] is not None:
            with self._own_random():
                self._stream.load_state_dict(state["stream"])
        self._random = state["random"].cpu()

    @contextmanager
    def _own_random(self) -> Generator[None, None, None]:
        """Random numbers of the stream and the passes; the training's own stay what they are."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.set_state(self._random)
            try:
                yield
            finally:
                self._random = torch.default_generator.get_state()
