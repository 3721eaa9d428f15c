"""Views of parameters that modules multiply with inputs themselves, as of stacks of experts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from mfac.gradients.naming import named_layers
from mfac.gradients.prunable import Layout, weight_names
from mfac.gradients.vector import memory_of
from mfac.layerwise.found_views import why_unseen
from mfac.layerwise.products import Product, Products
from mfac.layerwise.views import Arguments, ConvolutionView, LayerView, patches_of

NOT_HEARD = "is multiplied with no inputs that calls of torch's functions show"
"""Why a weight is left dense that the batches listened to did not use."""


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


class OtherUseError(ValueError):
    """A weight that is used in another way than in the batches that were listened to.

    Args:
        name: Of the weight.
        what: How it is used, too.
    """

    def __init__(self, name: str, what: str) -> None:
        super().__init__(
            f"Parameter `model` should multiply inputs with {name!r} in the same way in every batch. Found that "
            f"{what}, too: leave it out of `params`."
        )


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
            OtherUseError: If the transposed weight takes part.
        """
        if product.turned != self.turned:
            raise OtherUseError(self.name, "its transpose takes part in a product")
        return product.inputs

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
        """The input for every group; `rows` are those of the geometry of this call.

        Args:
            product: Of this weight.

        Returns:
            By group.

        Raises:
            OtherUseError: If the call has another number of groups than the layer.
        """
        assert product.geometry is not None
        if product.geometry[3] != self.groups:
            raise OtherUseError(self.name, f"it is used with {product.geometry[3]} groups")
        self._geometry = product.geometry[:3]
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
        all of two or three dimensions that are of no known layer. Of names that share a memory the
        first.
    """
    names = {id(parameter): name for name, parameter in named.items()}
    taken = {memory_of(p) for _, layer in named_layers(model) for p in _known(layer)}
    found = {}
    for layer_name, layer in named_layers(model):
        for key, parameter in _held(layer):
            if id(parameter) not in names or memory_of(parameter) in taken:
                continue
            own = key in weight_names(layer)
            if own or (every and parameter.dim() in (2, 3)) or is_expert(f"{layer_name}.{key}", layer, parameter):
                taken.add(memory_of(parameter))
                found[names[id(parameter)]] = parameter
    return found


def is_expert(name: str, layer: nn.Module, parameter: Tensor) -> bool:
    """Whether a parameter is a stack of matrices in a module that says that it is of experts."""
    said = f"{name} {type(layer).__name__}".lower()
    return parameter.dim() == 3 and parameter.shape[0] > 1 and ("expert" in said or "moe" in said)


@dataclass
class Heard:
    """What the products of some batches tell.

    Attributes:
        known: What is known of weights, by name, in the order of the first products.
        reasons: Why nothing is known of others: "it ...".
        by_default: Names of those of both that are pruned where inputs can be seen.
        products: How many products with each weight there were.
    """

    known: dict[str, Multiplied] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    by_default: set[str] = field(default_factory=set)
    products: Counter[str] = field(default_factory=Counter)

    def forget(self, names: Collection[str]) -> None:
        """Leaves out what was heard of some weights, as their layers' calls tell of them."""
        for name in names:
            self.known.pop(name, None)
            self.reasons.pop(name, None)
        self.by_default -= set(names)


def listen(
    model: nn.Module,
    weights: Mapping[str, nn.Parameter],
    runs: Iterable[Callable[[], object]],
    until: Collection[str],
) -> Heard:
    """Which weights are multiplied with inputs, and how.

    Args:
        model: Where they are.
        weights: By name.
        runs: Each runs the model.
        until: Weights that later runs wait for; without them, the first run is enough.

    Returns:
        What was heard.
    """
    holders = {id(p): (f"{name}.{key}", layer) for name, layer in named_layers(model) for key, p in _held(layer)}
    heard = Heard()
    plain, convolutions = {}, set()
    for name, weight in weights.items():
        where, layer = holders[id(weight)]
        own = where.rsplit(".", 1)[-1] in weight_names(layer)
        if own or is_expert(where, layer, weight):
            heard.by_default.add(name)
        if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d) and own:
            convolutions.add(name)
        if is_plain(weight, name in convolutions):
            plain[name] = weight
        else:
            heard.reasons[name] = "is no contiguous floating-point tensor, whose products could be told"
    ways: dict[str, set[tuple[bool, bool]]] = {}

    def note(product: Product) -> None:
        groups = getattr(holders[id(weights[product.name])][1], "groups", 1)
        if product.geometry is not None and product.geometry[3] != groups:
            heard.reasons[product.name] = f"is used with {product.geometry[3]} groups, where its layer says {groups}"
        ways.setdefault(product.name, set()).add((product.turned, product.geometry is not None))
        heard.products[product.name] += 1

    def reject(name: str, function: str) -> None:
        heard.reasons.setdefault(name, f"is not multiplied with inputs as it is, but given to torch's {function!r}")

    listened = {id(weight) for weight in plain.values()}
    constants = [parameter for parameter in model.parameters() if id(parameter) not in listened]
    listening = Products(plain, note, reject, convolutions, [*constants, *model.buffers()])
    with listening if plain else nullcontext():
        for run in runs:
            run()
            if all(name in ways or name in heard.reasons for name in until):
                break
    for name in plain:
        if len(ways.get(name, ())) > 1:
            heard.reasons[name] = "is multiplied with inputs as it is, and transposed, too"
        elif name not in ways:
            heard.reasons.setdefault(name, NOT_HEARD)
    for name, of_name in ways.items():
        if name not in heard.reasons:
            turned, convolution = next(iter(of_name))
            heard.known[name] = Multiplied(turned, name in heard.by_default, convolution)
    return heard


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


def is_plain(parameter: Tensor, convolution: bool = False) -> bool:
    """Whether a parameter is one of torch's own, in memory, real, and dense as it should be."""
    if type(parameter) is not nn.Parameter or parameter.is_meta or parameter.layout != torch.strided:
        return False
    dense = parameter.is_contiguous() or (convolution and _is_permuted(parameter))
    return parameter.is_floating_point() and dense


def _is_permuted(parameter: Tensor) -> bool:
    """Whether a tensor is contiguous but for the order of its dimensions, as channels last."""
    order = sorted(range(parameter.dim()), key=parameter.stride, reverse=True)
    return parameter.permute(order).is_contiguous()
