"""Zeros that stay: hooks of an optimizer keep dropped weights and their momentum at zero."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from mfac.distributed.sharding import local_like
from mfac.masks.located import locate, same_memory

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""By the bytes of an element, which is cleared as one."""


def state_of(optimizer: Optimizer, parameter: Tensor) -> Mapping[str, Any]:
    """What an optimizer keeps for a parameter, or one within it, as ZeroRedundancyOptimizer has."""
    inner = getattr(optimizer, "optim", None)
    found: Mapping[str, Any] = optimizer.state.get(parameter, {})
    return state_of(inner, parameter) if not found and isinstance(inner, Optimizer) else found


class MaskHandle:
    """What `Masks.attach` returns: the hooks of one optimizer, until `remove` is called.

    Before each step the gradients of dropped weights are set to zero, so that no momentum, second
    moment or window sees them; after it the weights, and what the optimizer keeps for them. What a
    closure computes within a step is treated in the same way. The window of `mfac.MFAC` stores the
    columns of kept weights alone, from the next step on. The model holds nothing of it, so
    that its copies and its `state_dict` are as ever.
    As a context manager it removes itself at the end.

    Args:
        model: Whose parameters are masked. They are looked up by name in each step, and so followed
            wherever they go.
        optimizer: Whose steps are hooked.
        masks: Parameter name to mask, True = kept.
        keep_state: Keys of optimizer state that are no value for each weight and stay as they are.

    Raises:
        TypeError: If `optimizer` is no `torch.optim.Optimizer`.
        ValueError: If it has none of the parameters, or names or shapes are not the model's.
    """

    def __init__(
        self, model: nn.Module, optimizer: Optimizer, masks: Mapping[str, Tensor], keep_state: Collection[str] = ()
    ) -> None:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(
                f"Parameter `optimizer` should be a torch.optim.Optimizer. Found {type(optimizer).__name__}."
            )
        self._model, self._optimizer, self._keep_state = model, optimizer, frozenset(keep_state)
        self._masks = {name: mask for name, mask in masks.items() if not bool(mask.all())}
        self._bits: dict[str, dict[Any, Tensor]] = {}  # on the device where each parameter was last seen
        located = locate(model, masks)
        self._aliases = {name: same_memory(model, parameter)[1:] for name, parameter in located.items()}
        known = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        if located and not any(
            id(leaf) in known for parameter in located.values() for leaf in same_memory(model, parameter)
        ):
            raise ValueError(
                f"Parameter `optimizer` should have some of the masked parameters of `model`. "
                f"Found none of {list(located)} among its {len(known)}."
            )
        self._is_stale = False
        self._clear()
        self._keep_columns(self._masks)
        self._hooks = [
            optimizer.register_step_pre_hook(self._before),
            optimizer.register_step_post_hook(self._after),
            optimizer.register_load_state_dict_post_hook(self._loaded),
        ]

    def remove(self) -> None:
        """Takes the hooks away; weights are free to come back. A second call does nothing."""
        if self._hooks:
            self._keep_columns(dict.fromkeys(self._masks))
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def change(self, masks: Mapping[str, Tensor]) -> None:
        """Puts other masks in the place of some: newly dropped weights and their state become zero.

        Weights that come back are zero with a state of zero, as they were while they were dropped.

        Args:
            masks: Parameter name to mask, of names that the handle has had from the start.

        Raises:
            RuntimeError: If the handle was removed.
            TypeError: If a mask is not of bool.
            ValueError: If a name is another or a shape is not the parameter's. After any of these
                nothing is changed.
        """
        if not self._hooks:
            raise RuntimeError("The masks cannot change, as the handle was removed: attach them again.")
        for name, mask in masks.items():
            if mask.dtype != torch.bool:
                raise TypeError(f"Parameter `masks` should hold bool tensors. Found {mask.dtype} for {name!r}.")
        for name in masks.keys() - self._aliases.keys():
            raise ValueError(f"Parameter `masks` should have names of {list(self._aliases)}. Found {name!r}.")
        for name, parameter in locate(self._model, masks).items():
            self._bits.pop(name, None)
            self._masks.pop(name, None)
            if not bool(masks[name].all()):
                self._masks[name] = masks[name]
            if self._keeps_columns is not None:
                for leaf in (parameter, *self._aliases[name]):
                    self._keeps_columns(leaf, self._masks.get(name))
        self._clear(masks)

    def __enter__(self) -> MaskHandle:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def _keep_columns(self, masks: Mapping[str, Tensor | None]) -> None:
        """Tells an optimizer that stores columns of weights which are kept."""
        if self._keeps_columns is not None:
            for name, parameter in self._places():
                self._keeps_columns(parameter, masks[name])

    @property
    def _keeps_columns(self) -> Callable[[Tensor, Tensor | None], None] | None:
        """What an optimizer such as `mfac.MFAC` is told by which weights are kept."""
        return getattr(self._optimizer, "keep_columns", None)

    def _before(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Clears weights and gradients; a closure clears the gradients that it computes."""
        if self._is_stale:
            self._clear()
            self._is_stale = False
        self._clear_gradients()
        if len(args) > 1 and callable(args[1]):
            return (args[0], self._cleared(args[1]), *args[2:]), kwargs
        if callable(kwargs.get("closure")):
            return args, {**kwargs, "closure": self._cleared(kwargs["closure"])}
        return None

    def _after(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._clear()

    def _loaded(self, optimizer: Optimizer) -> None:
        self._is_stale = True  # cleared by the next step, as masks may be about to be loaded too

    def _cleared(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        """A closure after which dropped weights have no gradient."""

        def closure_and_clear() -> Any:
            loss = closure()
            self._clear_gradients()
            return loss

        return closure_and_clear

    def _places(self, names: Collection[str] | None = None) -> Iterator[tuple[str, nn.Parameter]]:
        """Every parameter with dropped weights, and its mask's name; of some names or all."""
        masks = self._masks if names is None else {name: mask for name, mask in self._masks.items() if name in names}
        for name, parameter in locate(self._model, masks).items():
            for leaf in (parameter, *self._aliases[name]):
                yield name, leaf

    def _clear_(self, name: str, tensor: Tensor) -> None:
        """Sets the dropped entries of a tensor of the parameter's shape to zero, whatever it holds.

        A product with zero would leave a NaN as it is, and `masked_fill_` is twenty times as slow.
        """
        if tensor.is_sparse:
            dropped = ~self._masks[name].to(tensor.device)[tuple(tensor._indices())]
            tensor._values().masked_fill_(dropped, 0)
            return
        kind, place, mask = _INTEGERS[tensor.element_size()], getattr(tensor, "placements", None), self._masks[name]
        if place is not None:
            sharded: Any = tensor
            mask, tensor = local_like(mask, sharded), sharded.to_local()
        known = self._bits.setdefault(name, {})
        bits = known.get((kind, place))
        if bits is None or bits.device != tensor.device:
            bits = torch.empty_like(tensor, dtype=kind).copy_(mask.to(tensor.device)).neg_()  # all ones, or none
            known[kind, place] = bits
        tensor.detach().view(kind).bitwise_and_(bits)

    @torch.no_grad()
    def _clear_gradients(self) -> None:
        for name, parameter in self._places():
            self._clear_(name, parameter)  # weight decay would put what was written since into the momentum
            gradient = parameter.grad
            if gradient is not None:
                self._clear_(name, gradient)

    @torch.no_grad()
    def _clear(self, names: Collection[str] | None = None) -> None:
        """Clears weights and state, of all parameters or of some."""
        for name, parameter in self._places(names):
            self._clear_(name, parameter)
            for state in self._state_of(parameter):
                self._clear_(name, state)

    def _state_of(self, parameter: nn.Parameter) -> Iterator[Tensor]:
        """Everything of the parameter's shape that the optimizer keeps for it."""
        # mfac.MFAC says which entries that can be: others may have the shape by chance.
        own: Collection[str] | None = getattr(self._optimizer, "elementwise_state", None)
        for key, value in state_of(self._optimizer, parameter).items():
            if key in self._keep_state or (own is not None and key not in own):
                continue
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                yield value
