"""Weights that a module multiplies with itself, as experts do: their products, as torch is called.

The experts of a mixture are often one parameter, a stack of matrices, and no layer shows with which
inputs each of them is multiplied. The calls of torch's functions show it, whoever makes them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

_PRODUCTS = {torch.matmul, torch.mm, torch.bmm, Tensor.matmul, Tensor.mm, Tensor.bmm, Tensor.__matmul__}
_REVERSED = {Tensor.__rmatmul__}
_ADDED = {torch.addmm, torch.baddbmm, Tensor.addmm, Tensor.baddbmm}
_CONVOLUTIONS = {torch.conv1d, torch.conv2d, torch.conv3d}
_GROUPED = {torch._grouped_mm}  # which torch.nn.functional.grouped_mm calls


@dataclass(frozen=True)
class Product:
    """Inputs that matrices of a weight are multiplied with.

    Attributes:
        name: The weight's.
        turned: Whether its matrices are [in, out], and not [out, in] as a linear layer's.
        inputs: By the number of the matrix, features last; of a convolution what it is given, by 0.
        geometry: Of a convolution its stride, padding and dilation.
    """

    name: str
    turned: bool
    inputs: dict[int, Tensor]
    geometry: tuple[Any, Any, Any] | None = None


@dataclass(frozen=True)
class _Operands:
    """One way to read a product: inputs with features last, and the axis of features in a weight.

    Attributes:
        axis: -1 or -2.
        by_matrix: The inputs of the i-th of several matrices.
    """

    weight: Tensor
    axis: int
    by_matrix: Callable[[int], Tensor]


class Products(TorchFunctionMode):
    """Within, every product of inputs with some weights is told.

    Args:
        weights: By name, strided and contiguous: [out, in] or [in, out], or a stack of such
            matrices; or of convolutions.
        found: Called with each product.
        other: Called with the name of a weight and that of a function which is given the weight, or
            a view of it, and makes something else of it than a product or a view.
    """

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        found: Callable[[Product], None],
        other: Callable[[str, str], None] = lambda name, function: None,
    ) -> None:
        super().__init__()
        self._weights, self._found, self._other = dict(weights), found, other
        self._names: dict[int, str] = {}

    def __enter__(self) -> Products:
        """Notes where the weights are in memory."""
        self._names = {place: name for name, w in self._weights.items() if (place := _memory(w)) is not None}
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Calls the function, and looks at what it was given."""
        kwargs = kwargs or {}
        given = [x for x in _tensors([*args, *kwargs.values()]) if self._name_of(x) is not None]
        if not given:
            return func(*args, **kwargs)
        if func in _CONVOLUTIONS:
            products = self._convolution(args, kwargs)
        else:
            products = [found for operands in _operands(func, args, kwargs) if (found := self._product(operands))]
        for product in products:  # before the call, which may change its inputs
            self._found(product)
        result = func(*args, **kwargs)
        told = {product.name for product in products}
        made = _tensors(result if isinstance(result, tuple | list) else [result])
        for name in dict.fromkeys(map(self._name_of, given)):
            if name not in told and any(self._name_of(x) != name for x in made):
                self._other(str(name), getattr(func, "__name__", repr(func)))
        return result

    def _name_of(self, x: Tensor) -> str | None:
        """Of the weight whose memory a tensor has."""
        place = _memory(x)
        return None if place is None else self._names.get(place)

    def _convolution(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Product]:
        """A convolution with a whole weight."""
        names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
        given = {"stride": 1, "padding": 0, "dilation": 1, **dict(zip(names, args, strict=False)), **kwargs}
        name, weight = self._name_of(given["weight"]), given["weight"]
        if name is None or (weight.shape, weight.stride()) != (self._weights[name].shape, self._weights[name].stride()):
            return []
        geometry = (given["stride"], given["padding"], given["dilation"])
        return [Product(name, False, {0: given["input"].detach()}, geometry)]

    def _product(self, operands: _Operands) -> Product | None:
        name = self._name_of(operands.weight)
        if name is None:
            return None
        weight, w, axis = self._weights[name], operands.weight, operands.axis
        plane = weight.stride(0) if weight.dim() == 3 else weight.numel()
        first, begin = divmod(int(w.storage_offset()) - int(weight.storage_offset()), plane)
        if w.dim() == 3 and w.shape[0] > 1 and w.stride(0) != plane:
            return None
        width = weight.shape[-1]
        for turned, of_weight, start in ((False, -1, begin % width), (True, -2, begin // width)):
            if w.shape[axis] != weight.shape[of_weight] or w.stride(axis) != weight.stride(of_weight) or start:
                continue
            outputs = w.shape[-3 - axis]
            each = weight.shape[-3 - of_weight]
            if outputs <= each:
                numbers = range(w.shape[0] if w.dim() == 3 else 1)
                return Product(name, turned, {first + i: operands.by_matrix(i).detach() for i in numbers})
            if w.dim() == 2 and not begin and outputs % each == 0:  # a stack as one long matrix
                x = operands.by_matrix(0).detach()
                return Product(name, turned, {first + i: x for i in range(outputs // each)})
        return None


def _memory(x: Tensor) -> int | None:
    """Where a tensor's memory begins; None where it has none, or is of several tensors."""
    try:
        return x.untyped_storage().data_ptr() or None
    except (NotImplementedError, RuntimeError):
        return None


def _tensors(values: Sequence[Any]) -> list[Tensor]:
    """Tensors among values, and within lists of them."""
    found = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, tuple | list):
            found += [x for x in value if isinstance(x, Tensor)]
    return found


def _operands(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[_Operands]:
    """The ways to read a call as inputs times a weight; none if it is no product."""
    given = [*args, *(value for key, value in kwargs.items() if key not in ("bias", "out", "dtype", "out_dtype"))]
    if func is torch.einsum:
        yield from _of_einsum(given)
    elif func is functional.linear:
        x, w = given[:2]
        yield _Operands(w, -1, lambda _: x)
    elif func in _GROUPED:
        yield from _of_groups(given[0], given[1], kwargs.get("offs", given[2] if len(given) > 2 else None))
    elif func in _PRODUCTS or func in _REVERSED or func in _ADDED:
        first, second = given[1:3] if func in _ADDED else given[:2]
        if func in _REVERSED:
            first, second = second, first
        if not isinstance(first, Tensor) or not isinstance(second, Tensor):
            return
        if second.dim() in (2, 3):
            yield _Operands(second, -2, lambda number: _of_stack(first, second, number))
        if first.dim() in (2, 3):
            inputs = second.mT if second.dim() > 1 else second
            yield _Operands(first, -1, lambda number: _of_stack(inputs, first, number))


def _of_stack(x: Tensor, weight: Tensor, number: int) -> Tensor:
    """The inputs of one matrix of a stack, as products of stacks broadcast."""
    if weight.dim() < 3 or x.dim() < 3 or x.shape[-3] == 1:
        return x
    return x.select(-3, number)


def _of_groups(x: Tensor, weight: Tensor, ends: Tensor | None) -> Iterator[_Operands]:
    """Rows of inputs in groups, each with a matrix of its own, as `grouped_mm` takes them."""
    if x.dim() != 2 or weight.dim() != 3 or ends is None:
        return
    bounds = [0, *ends.tolist()]
    yield _Operands(weight, -2, lambda number: x[bounds[number] : bounds[number + 1]])


def _of_einsum(given: Sequence[Any]) -> Iterator[_Operands]:
    """A product of two tensors that sums over one letter alone."""
    equation, *tensors = given
    if len(tensors) == 1 and isinstance(tensors[0], tuple | list):
        tensors = list(tensors[0])
    if not isinstance(equation, str) or "->" not in equation or "." in equation or len(tensors) != 2:
        return
    sides, out = equation.replace(" ", "").split("->")
    letters = sides.split(",")
    if any(len(set(of)) < len(of) for of in letters):
        return
    for place in (0, 1):
        of_w, of_x = letters[place], letters[1 - place]
        w, x = tensors[place], tensors[1 - place]
        summed = [letter for letter in of_w if letter in of_x and letter not in out]
        stack = of_w[0] if len(of_w) == 3 else ""
        if len(of_w) not in (2, 3) or len(summed) != 1 or summed[0] == stack or stack not in out:
            continue
        if any(letter in of_x for letter in of_w if letter not in (summed[0], stack)):
            continue  # elementwise along what would be its outputs
        yield _Operands(w, of_w.index(summed[0]) - len(of_w), _of_letter(x, of_x, summed[0], stack))


def _of_letter(x: Tensor, letters: str, features: str, stack: str) -> Callable[[int], Tensor]:
    def of_matrix(number: int) -> Tensor:
        if not stack or stack not in letters:
            return x.movedim(letters.index(features), -1)
        one = x.select(letters.index(stack), number)
        return one.movedim(letters.replace(stack, "").index(features), -1)

    return of_matrix
