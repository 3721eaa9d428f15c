"""Weights that a module multiplies with itself, as experts do: their products, as torch is called.

The experts of a mixture are often one parameter, a stack of matrices, and no layer shows with which
inputs each of them is multiplied. The calls of torch's functions show it, whoever makes them.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

_PAIRS = {torch.matmul, torch.mm, torch.bmm, Tensor.matmul, Tensor.mm, Tensor.bmm, Tensor.__matmul__}
_REVERSED = {Tensor.__rmatmul__}
_SUMS = {torch.addmm, torch.baddbmm, Tensor.addmm, Tensor.baddbmm}
_CONVOLUTIONS = {torch.conv1d, torch.conv2d, torch.conv3d}
_GROUPED = {torch._grouped_mm}  # which torch.nn.functional.grouped_mm calls

_OF_LINEAR = {"input": 0, "weight": 1, "bias": 2}
_OF_PAIR = {"input": 0, "self": 0, "other": 1, "mat2": 1}
_OF_SUM = {"input": 0, "self": 0, "mat1": 1, "batch1": 1, "mat2": 2, "batch2": 2}
_OF_GROUPS = {"input": 0, "self": 0, "mat_a": 0, "mat2": 1, "mat_b": 1, "offs": 2}
_OF_CONVOLUTION = {"input": 0, "weight": 1, "bias": 2, "stride": 3, "padding": 4, "dilation": 5, "groups": 6}
"""Places of arguments by their names."""

_LIKE = {"type_as", "to", "expand_as", "view_as", "reshape_as"}
"""Functions whose other arguments than the first say a dtype, a device or a shape alone."""
_NEW = ("new_", "isfinite", "isnan", "isinf", "zeros_like", "ones_like", "empty_like", "full_like")
"""Beginnings of the names of functions that take nothing of a tensor's numbers along."""


@dataclass(frozen=True)
class Product:
    """Inputs that matrices of a weight are multiplied with.

    Attributes:
        name: The weight's.
        turned: Whether its matrices are [in, out], and not [out, in] as a linear layer's.
        inputs: By the number of the matrix, features last; of a convolution what it is given, by 0.
        geometry: Of a convolution its stride, padding, dilation and groups.
    """

    name: str
    turned: bool
    inputs: dict[int, Tensor]
    geometry: tuple[Any, Any, Any, int] | None = None


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
        weights: By name, strided: [out, in] or [in, out], or a stack of such matrices, contiguous;
            or of convolutions, dense.
        found: Called with each product.
        other: Called with the name of a weight and that of a function which is given the weight, or
            a view of it, and makes something else of it than a product with inputs or a view.
        convolutions: Names of the weights of convolutions, whose products are no others.
        constants: Tensors that are no inputs, as other weights, and buffers.
    """

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        found: Callable[[Product], None],
        other: Callable[[str, str], None] = lambda name, function: None,
        convolutions: Collection[str] = (),
        constants: Iterable[Tensor] = (),
    ) -> None:
        super().__init__()
        self._weights, self._found, self._other = dict(weights), found, other
        self._convolutions, self._constants = convolutions, list(constants)
        self._spans: dict[int, list[tuple[int, int, str]]] = {}

    def __enter__(self) -> Products:
        """Notes where weights and constants are in memory."""
        self._spans = {}
        named = [*self._weights.items(), *(("", constant) for constant in self._constants)]
        for name, tensor in named:
            if (place := _place(tensor)) is not None:
                begin = place[1]
                span = (begin, begin + tensor.numel() * tensor.element_size(), name)
                self._spans.setdefault(place[0], []).append(span)
        for spans in self._spans.values():
            spans.sort(key=lambda span: (span[0], span[2] != ""))  # of names over one memory a weight's is the last
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Calls the function, and looks at what it was given."""
        kwargs = kwargs or {}
        called = getattr(func, "__name__", repr(func))
        taken = args[:1] if called in _LIKE else [*args, *kwargs.values()]
        names = dict.fromkeys(name for x in _tensors(taken) if (name := self._name_of(x)))
        if not names or called.startswith(_NEW):
            return func(*args, **kwargs)
        products = self._products(func, args, kwargs)
        for product in products:  # before the call, which may change its inputs
            self._found(product)
        result = func(*args, **kwargs)
        told = {product.name for product in products}
        made = _tensors(result if isinstance(result, tuple | list) else [result])
        for name in names:
            if name not in told and any(self._name_of(x) != name for x in made):
                self._other(name, called)
        return result

    def _name_of(self, x: Tensor) -> str | None:
        """Of the weight whose memory a tensor has; "" of a constant, None of any other tensor."""
        place = _place(x)
        if place is None or place[0] not in self._spans:
            return None
        spans = self._spans[place[0]]
        number = bisect_right(spans, place[1], key=lambda span: span[0]) - 1
        return spans[number][2] if number >= 0 and place[1] < spans[number][1] else None

    def _products(self, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Product]:
        """The products with weights in a call; those whose other factor is no input are none."""
        if func in _CONVOLUTIONS:
            products = self._convolution(args, kwargs)
        else:
            products = [found for operands in _operands(func, args, kwargs) if (found := self._product(operands))]
        return [
            product
            for product in products
            if not any(self._name_of(x) is not None or _is_wrapped(x) for x in product.inputs.values())
        ]

    def _convolution(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Product]:
        """A convolution with a whole weight."""
        x, w, _, *geometry = _placed(args, kwargs, _OF_CONVOLUTION)
        name = self._name_of(w)
        if not name or name not in self._convolutions:
            return []
        weight = self._weights[name]
        same = w.stride() == weight.stride() or (w.is_contiguous() and weight.is_contiguous())
        if w.shape != weight.shape or not same:
            return []
        stride, padding, dilation, groups = (
            default if given is None else given for given, default in zip(geometry, (1, 0, 1, 1), strict=True)
        )
        return [Product(name, False, {0: x.detach()}, (stride, padding, dilation, groups))]

    def _product(self, operands: _Operands) -> Product | None:
        name = self._name_of(operands.weight)
        if not name or name in self._convolutions:
            return None
        weight, w, axis = self._weights[name], operands.weight, operands.axis
        plane = weight.stride(0) if weight.dim() == 3 else weight.numel()
        first, begin = divmod(int(w.storage_offset()) - int(weight.storage_offset()), plane)
        if begin or (w.dim() == 3 and w.shape[0] > 1 and w.stride(0) != plane):
            return None  # a part of a matrix, whose other part may have other inputs
        for turned, of_weight in ((False, -1), (True, -2)):
            if w.shape[axis] != weight.shape[of_weight] or w.stride(axis) != weight.stride(of_weight):
                continue
            outputs, each = w.shape[-3 - axis], weight.shape[-3 - of_weight]
            if outputs > 1 and w.stride(-3 - axis) != weight.stride(-3 - of_weight):
                return None  # of several matrices some rows, or one row again and again
            if outputs == each:
                numbers = range(w.shape[0] if w.dim() == 3 else 1)
                return Product(name, turned, {first + i: operands.by_matrix(i).detach() for i in numbers})
            if w.dim() == 2 and outputs % each == 0:  # a stack as one long matrix
                x = operands.by_matrix(0).detach()
                return Product(name, turned, {first + i: x for i in range(outputs // each)})
        return None


def _place(x: Tensor) -> tuple[int, int] | None:
    """Where a tensor's storage is, and how many bytes into it the tensor begins; None: nowhere."""
    try:
        storage = x.untyped_storage().data_ptr()
        return (storage, int(x.storage_offset()) * x.element_size()) if storage else None
    except (NotImplementedError, RuntimeError, ValueError):  # of wrappers, and of what has no numbers yet
        return None


def _is_wrapped(x: Tensor) -> bool:
    """Whether a tensor stands for others, as within `torch.vmap`."""
    return torch._C._functorch.is_functorch_wrapped_tensor(x)


def _placed(args: Sequence[Any], kwargs: Mapping[str, Any], places: Mapping[str, int]) -> list[Any]:
    """Arguments by their places, however they were given; None for those that were not."""
    found: list[Any] = [*args, *[None] * (max(places.values()) + 1 - len(args))]
    for name, value in kwargs.items():
        if name in places:
            found[places[name]] = value
    return found[: max(places.values()) + 1]


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
    if func is torch.einsum:
        yield from _of_einsum(args)
    elif func is functional.linear:
        x, w, _ = _placed(args, kwargs, _OF_LINEAR)
        if w.dim() == 2:
            yield _Operands(w, -1, lambda _: x)
    elif func in _GROUPED:
        yield from _of_groups(*_placed(args, kwargs, _OF_GROUPS))
    elif func in _PAIRS or func in _REVERSED or func in _SUMS:
        first, second = _placed(args, kwargs, _OF_SUM)[1:] if func in _SUMS else _placed(args, kwargs, _OF_PAIR)
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
    if weight.dim() < 3 or weight.shape[0] == 1 or x.dim() < 3 or x.shape[-3] == 1:
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
        if any(letter not in out for letter in of_w + of_x if letter != summed[0]):
            continue  # a sum of inputs, or of outputs
        yield _Operands(w, of_w.index(summed[0]) - len(of_w), _of_letter(x, of_x, summed[0], stack))


def _of_letter(x: Tensor, letters: str, features: str, stack: str) -> Callable[[int], Tensor]:
    def of_matrix(number: int) -> Tensor:
        if not stack or stack not in letters:
            return x.movedim(letters.index(features), -1)
        one = x.select(letters.index(stack), number)
        return one.movedim(letters.replace(stack, "").index(features), -1)

    return of_matrix
