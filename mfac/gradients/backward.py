"""The gradient of one batch, or of each of its samples, as rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from operator import itemgetter
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mfac.gradients.nested import map_tensors, num_samples, tensors_in
from mfac.gradients.threads import OperationCount, one_thread, threads_for
from mfac.gradients.vector import ParameterVector

LossFunction = Callable[[nn.Module, Any], Tensor]

SAMPLE_ENTRIES = 1 << 24  # of the per-sample gradients that are held at once
_UNCOUNTED = 1 << 62  # operations of what does not compute on the CPU


def check_loss(loss: Tensor) -> Tensor:
    """Accepts a scalar loss that depends on the model.

    Args:
        loss: What `loss_fn` returned.

    Returns:
        The loss, with no dimension.

    Raises:
        TypeError: If it is not a real floating-point tensor.
        ValueError: If it is no scalar, or has no gradient.
    """
    if not isinstance(loss, Tensor):
        raise TypeError(f"Parameter `loss_fn` should return a scalar tensor. Found {type(loss).__name__}.")
    if not loss.is_floating_point():
        raise TypeError(f"Parameter `loss_fn` should return a real floating-point scalar. Found {loss.dtype}.")
    if loss.numel() != 1:
        raise ValueError(f"Parameter `loss_fn` should return a scalar. Found shape {list(loss.shape)}.")
    if not loss.requires_grad:
        raise ValueError(
            "Parameter `loss_fn` should return a loss that depends on the model. Found one that requires no gradient."
        )
    return loss.reshape(())


class GradientSource:
    """Gradients of a loss with respect to a vector of parameters. Nothing of the model is changed.

    Args:
        model: The model, in the mode that its gradients are wanted in.
        loss_fn: `loss_fn(model, batch)` returns a scalar.
        vector: The parameters.
        per_sample: One gradient a sample in place of one a batch.

    Attributes:
        unused: Names of parameters whose gradients have all been zero or none so far.
        never_used: Names of parameters that no loss depended on so far.
    """

    def __init__(self, model: nn.Module, loss_fn: LossFunction, vector: ParameterVector, per_sample: bool) -> None:
        self.model, self.loss_fn, self.vector, self.per_sample = model, loss_fn, vector, per_sample
        self.unused = set(vector.names)
        self.never_used = set(vector.names)
        self._way: Literal["grad", "backward"] | None = None  # until the first batch
        self._operations: int | None = None  # of a batch, or of a sample; None until the first
        # By torch.func, until a model turns out not to allow it; recurrent layers only have a slow
        # way round.
        self._vectorised = not any(isinstance(layer, nn.RNNBase) for layer in model.modules())

    def rows(self, batch: Any, number: int) -> Iterator[Tensor]:
        """The gradients of a batch.

        Args:
            batch: The batch.
            number: Its number in the pass over the data, from 0, for messages.

        Yields:
            Rows [k, d].

        Raises:
            TypeError: If the loss or the batch is of a wrong type.
            ValueError: If the loss is no scalar or not finite.
            RuntimeError: Of the model or the loss.
        """
        if not self.per_sample:
            yield self._of_batch(batch, number)[None]
            return
        tensors = list(tensors_in(batch))
        sizes = {tensor.shape[0] if tensor.dim() else 0 for tensor in tensors}
        if len(sizes) != 1 or sizes == {0}:
            raise ValueError(
                f"Parameter `data` should yield batches whose tensors share a first dimension, the samples. "
                f"Found shapes {[list(tensor.shape) for tensor in tensors]}."
            )
        count = sizes.pop()
        # torch.func gives zeros for an unused parameter and says less of a bad loss: one sample
        # goes the other way.
        first = self._of_batch(_samples(batch, 0, 1), number)[None]
        if self._vectorised and count > 1:
            chunk = max(1, SAMPLE_ENTRIES // max(1, self.vector.dim))
            for start in range(0, count, chunk):
                stop = min(start + chunk, count)
                try:
                    yield self._vectorised_rows(_samples(batch, start, stop), stop - start)
                except RuntimeError:  # recurrent layers, and whatever else has no batching rule
                    if start:
                        raise
                    self._vectorised = False
                    break
            else:
                return
        yield first
        for i in range(1, count):
            yield self._of_batch(_samples(batch, i, i + 1), number)[None]

    def loss(self, batch: Any) -> float:
        """The loss of one batch, with as many threads as its gradient takes.

        Args:
            batch: As `loss_fn` takes it.

        Returns:
            The loss.
        """
        operations = self._operations or 0  # of one sample, where gradients are of samples
        if self.per_sample:
            operations *= num_samples(batch) or 1
        with threads_for(operations), torch.enable_grad():  # some losses differentiate within
            return float(self.loss_fn(self.model, batch).detach())

    def _of_batch(self, batch: Any, number: int) -> Tensor:
        """The gradient of one batch, [d]."""
        if self._operations is None:  # the first batch takes one thread, as what it is like is not known yet
            counted = OperationCount()
            with counted.over(self.model), one_thread():
                gradient = self._computed(batch, number)
            self._operations = counted.total if self.vector.device.type == "cpu" else _UNCOUNTED
            return gradient
        with threads_for(self._operations):
            return self._computed(batch, number)

    def _computed(self, batch: Any, number: int) -> Tensor:
        leaves = self.vector.leaves()
        with torch.enable_grad():
            try:
                loss = check_loss(self.loss_fn(self.model, batch))
            except RuntimeError as error:
                if "Inference tensors" not in str(error):
                    raise
                raise ValueError(
                    f"Parameter `data` should yield tensors made outside torch.inference_mode(). Found others in batch "
                    f"{number} of the data (counted from 0)."
                ) from error
            if not bool(torch.isfinite(loss)):
                raise ValueError(
                    f"Parameter `loss_fn` should return a finite loss. Found {float(loss.detach())} in batch {number} "
                    f"of the data (counted from 0)."
                )
            gradients = self._differentiate(loss, leaves, batch)
        self._note(gradients)
        return self.vector.flat_gradient(gradients)

    def _note(self, gradients: list[Tensor | None]) -> None:
        """Takes the parameters that have a gradient off the unused ones."""
        if not self.unused:
            return
        left = iter(gradients)
        for name, aliases in zip(self.vector.names, self.vector.aliases, strict=True):
            found = [next(left) for _ in range(1 + len(aliases))]
            if any(g is not None for g in found):
                self.never_used.discard(name)
            if name in self.unused and any(g is not None and bool(g.any()) for g in found):
                self.unused.discard(name)

    def _differentiate(self, loss: Tensor, leaves: list[nn.Parameter], batch: Any) -> list[Tensor | None]:
        if self._way == "backward":
            return self._by_backward(loss, leaves)
        try:
            found: list[Tensor | None] = list(torch.autograd.grad(loss, leaves, allow_unused=True))
        except RuntimeError as error:
            if "checkpoint" not in str(error).lower():
                raise
            found = [None] * len(leaves)
        if self._way is None:
            # Reentrant checkpoints hide the parameters within from all but backward(): once, the
            # other way is tried.
            self._way = "grad"
            if any(gradient is None for gradient in found):
                others = self._by_backward(check_loss(self.loss_fn(self.model, batch)), leaves)
                if any(a is None and b is not None for a, b in zip(found, others, strict=True)):
                    self._way, found = "backward", others
        return found

    def _by_backward(self, loss: Tensor, leaves: list[nn.Parameter]) -> list[Tensor | None]:
        """By way of `.grad`, which every parameter has back afterwards."""
        everything = list(self.model.parameters())
        before = [parameter.grad for parameter in everything]
        try:
            for parameter in everything:
                parameter.grad = None
            loss.backward()
            return [leaf.grad for leaf in leaves]
        finally:
            for parameter, gradient in zip(everything, before, strict=True):
                parameter.grad = gradient

    def _vectorised_rows(self, batch: Any, count: int) -> Tensor:
        """One gradient a sample, [count, d], by torch.func."""
        loss = _Loss(self.model, self.loss_fn)
        leaves = self.vector.leaves()
        weights = {id(leaf): leaf.detach() for leaf in leaves}
        # functional_call's own ties lose the parameters of a module that stands in two places: each
        # module is named once here, with every name of its parameters.
        places = {
            f"{module_name}.{name}": id(parameter)
            for module_name, module in loss.named_modules()
            for name, parameter in module._parameters.items()
            if id(parameter) in weights
        }

        def of_one_sample(weights: dict[int, Tensor], sample: list[Tensor]) -> Tensor:
            tensors = iter(sample)  # vmap knows lists, not every class of batch
            one = map_tensors(batch, lambda _: next(tensors).unsqueeze(0))
            exchanged = {place: weights[key] for place, key in places.items()}
            result: Tensor = torch.func.functional_call(loss, exchanged, (one,), tie_weights=False)
            return result

        gradient_of = torch.func.vmap(torch.func.grad(of_one_sample), in_dims=(None, 0), randomness="different")
        with threads_for((self._operations or 0) * count):
            gradients = gradient_of(weights, list(tensors_in(batch)))
        pieces, left = [], iter(gradients[id(leaf)] for leaf in leaves)
        for aliases in self.vector.aliases:
            total = next(left).reshape(count, -1).to(self.vector.dtype)
            for _ in aliases:
                total = total + next(left).reshape(count, -1)
            pieces.append(total)
        return torch.cat(pieces, dim=1)


class _Loss(nn.Module):
    """The loss as a module, so that `functional_call` can exchange the model's parameters in it."""

    def __init__(self, model: nn.Module, loss_fn: LossFunction) -> None:
        super().__init__()
        self.model = model
        self.loss_fn = loss_fn

    def forward(self, batch: Any) -> Tensor:
        return check_loss(self.loss_fn(self.model, batch))


def _samples(batch: Any, start: int, stop: int) -> Any:
    return map_tensors(batch, itemgetter(slice(start, stop)))
