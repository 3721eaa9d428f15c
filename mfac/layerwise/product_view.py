"""Views of parameters that modules multiply with inputs themselves, as of stacks of experts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from mfac.gradients.naming import named_layers
from mfac.gradients.prunable import Layout, weight_names
from mfac.layerwise.products import Product, Products
from mfac.layerwise.views import Arguments, ConvolutionView, LayerView, patches_of, pieces, why_unseen


@dataclass(frozen=True)
class Multiplied:
    """What is known of a parameter of which products were seen.

    Attributes:
        turned: Whether its matrices are [in, out], and not [out, in].
        by_default: Whether it is pruned unless told otherwise, as experts are.
        convolution: Whether it is a convolution's.
    """

    turned: bool
    by_default: bool
    convolution: bool = False

    def layout(self, shape: torch.Size) -> Layout:
        """How patterns see the parameter along its input channels."""
        stack = shape[0] if len(shape) == 3 else 1
        return (stack, shape[-2], shape[-1]) if self.turned else (stack * shape[-2], shape[-1], 1)


class ProductView(LayerView):
    """A parameter [out, in] or [in, out], or a stack of such matrices, and its products.

    Each matrix has inputs of its own; one that is never multiplied, as of an expert that no token
    is sent to, is `partial`: the others are solved without it.

    Args:
        name: The parameter's name.
        module: That holds it.
        parameter: The weight.
        turned: Whether matrices are [in, out].
    """

    partial = by_product = True

    def __init__(self, name: str, module: nn.Module, parameter: nn.Parameter, turned: bool) -> None:
        super().__init__(name, module, parameter)
        self.turned = turned
        rows, columns = parameter.shape[-2:]
        self.shapes = [(columns, rows) if turned else (rows, columns)] * self._stack().shape[0]

    @property
    def index(self) -> list[Tensor]:
        """Of each matrix."""
        index = torch.arange(self.parameter.numel()).view(self._stack().shape)
        return list(index.mT if self.turned else index)

    @property
    def unfolding(self) -> object:
        """Its inputs are those of its own products."""
        return self.name

    def sources(self, arguments: Arguments) -> list[Tensor]:
        """None: no call of its module shows them."""
        return []

    def heard(self, product: Product) -> Mapping[int, Tensor]:
        """The inputs in a product, by the number of the matrix.

        Args:
            product: Of this weight.

        Returns:
            The inputs.

        Raises:
            ValueError: If the transposed weight takes part.
        """
        if product.turned != self.turned:
            raise ValueError(
                f"Parameter `model` should multiply inputs with {self.name!r} in the same way in every batch. Found "
                f"that its transpose takes part in a product, too: leave it out of `params`."
            )
        return product.inputs

    def rows(self, number: int, source: Tensor) -> Iterator[Tensor]:
        """All but the last dimension together."""
        yield from source.reshape(-1, source.shape[-1]).split(pieces(source.shape[-1]))

    def matrices(self) -> Sequence[Tensor]:
        """The weight as matrices, float64 copies, each made when it is asked for."""
        return _Matrices(self._stack(), self.turned)

    def assembled(self, matrices: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        """Matrices as one tensor of the weight's shape."""
        made = torch.empty(self._stack().shape, dtype=dtype, device=self.parameter.device)
        for place, matrix in zip(made, matrices, strict=True):
            place.copy_(matrix.T if self.turned else matrix)
        return made.view(self.parameter.shape)

    def _stack(self) -> Tensor:
        weight = self.parameter.detach()
        return weight if weight.dim() == 3 else weight[None]


class HeardConvolutionView(ConvolutionView):
    """A convolution in a `forward` of the layer's own, as with padding that is computed there."""

    by_product = True
    _geometry: tuple[Any, Any, Any] = (1, 0, 1)

    @property
    def unfolding(self) -> object:
        """Its inputs are unfolded as each call says."""
        return self.name

    def heard(self, product: Product) -> Mapping[int, Tensor]:
        """The input for every group; `rows` are those of the geometry of this call."""
        assert product.geometry is not None
        self._geometry = product.geometry
        x = product.inputs[0]
        batched = x if x.dim() == self.parameter.dim() else x[None]
        return dict.fromkeys(range(self.groups), batched)

    def _unfolded(self, x: Tensor, m: Any) -> Tensor:
        kernel = tuple(self.parameter.shape[2:])
        stride, padding, dilation = (_each(value, len(kernel)) for value in self._geometry)
        around: list[int] = []
        for k, d, p in zip(kernel, dilation, padding, strict=True):
            both = d * (k - 1) if p == "same" else 0 if p == "valid" else 2 * p
            around = [both // 2, both - both // 2, *around]
        return patches_of(functional.pad(x, around), kernel, stride, dilation)


def _each(value: Any, dimensions: int) -> tuple[Any, ...]:
    """A value for each dimension, as torch takes one for all of them or a sequence."""
    if isinstance(value, int | str):
        return (value,) * dimensions
    return tuple(value) * (dimensions // len(value))


class _Matrices(Sequence[Tensor]):
    """The matrices of a stack in float64, which would take several times the stack's memory."""

    def __init__(self, stack: Tensor, turned: bool) -> None:
        self._stack, self._turned = stack, turned

    def __len__(self) -> int:
        return len(self._stack)

    def __getitem__(self, number: int) -> Tensor:  # type: ignore[override]
        if not 0 <= number < len(self):
            raise IndexError(number)
        matrix = self._stack[number].double()
        return matrix.T.contiguous() if self._turned else matrix


def candidates(model: nn.Module, named: Mapping[str, nn.Parameter], every: bool) -> dict[str, nn.Parameter]:
    """Parameters of which products may be seen, and nothing else of their inputs.

    Args:
        model: Where the layers are.
        named: Its parameters by name.
        every: Also those that are not pruned unless they are named.

    Returns:
        By name: those of layers with a `forward` of their own, stacks of experts, and with `every`
        all of two or three dimensions that are of no known layer.
    """
    names = {id(parameter): name for name, parameter in named.items()}
    found = {}
    known = {id(p) for _, layer in named_layers(model) for p in _known(layer)}
    for layer_name, layer in named_layers(model):
        for key, parameter in layer._parameters.items():
            if parameter is None or id(parameter) in known or id(parameter) not in names:
                continue
            own = key in weight_names(layer)
            if not (own or parameter.dim() in (2, 3)) or parameter.is_meta or not _is_plain(parameter):
                continue
            if own or every or is_expert(f"{layer_name}.{key}", layer, parameter):
                found[names[id(parameter)]] = parameter
    return found


def is_expert(name: str, layer: nn.Module, parameter: Tensor) -> bool:
    """Whether a parameter is a stack of matrices in a module that says that it is of experts."""
    said = f"{name} {type(layer).__name__}".lower()
    return parameter.dim() == 3 and parameter.shape[0] > 1 and ("expert" in said or "moe" in said)


def multiplied(
    model: nn.Module, weights: Mapping[str, nn.Parameter], run: Callable[[], object]
) -> dict[str, Multiplied]:
    """Which weights are multiplied with inputs, and how.

    Args:
        model: Where they are.
        weights: By name.
        run: Runs the model, so that products are seen.

    Returns:
        By name, in the order of the first products; without those that are used in other ways, too.
    """
    turned: dict[str, set[tuple[bool, bool]]] = {}
    others: set[str] = set()

    def note(product: Product) -> None:
        turned.setdefault(product.name, set()).add((product.turned, product.geometry is not None))

    with Products(weights, note, lambda name, function: others.add(name)):
        run()
    holders = {id(p): (f"{name}.{key}", layer) for name, layer in named_layers(model) for key, p in _held(layer)}
    found = {}
    for name, ways in turned.items():
        if name in others or len(ways) > 1:
            continue
        where, layer = holders[id(weights[name])]
        own = where.rsplit(".", 1)[-1] in weight_names(layer)
        way, convolution = next(iter(ways))
        if own or not convolution:
            found[name] = Multiplied(way, own or is_expert(where, layer, weights[name]), convolution)
    return found


def _held(layer: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(key, parameter) for key, parameter in layer._parameters.items() if parameter is not None]


def _known(layer: nn.Module) -> list[nn.Parameter]:
    """Parameters of a layer that its calls tell of, and tables."""
    if isinstance(layer, nn.Embedding | nn.EmbeddingBag | nn.RNNBase | nn.RNNCellBase):
        return [parameter for _, parameter in _held(layer)]
    own = weight_names(layer)
    if own == ["weight"] and why_unseen(layer) is not None:
        return []
    return [parameter for key, parameter in _held(layer) if key in own]


def _is_plain(parameter: Tensor) -> bool:
    return type(parameter) is nn.Parameter and parameter.layout == torch.strided and parameter.is_contiguous()
