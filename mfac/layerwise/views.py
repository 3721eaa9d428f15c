"""Weights of layers as matrices, and the inputs that each matrix is multiplied with, as rows."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from mfac.gradients.prunable import PrunableWeight, is_transformers_conv1d, layout_of
from mfac.masks.kinds.axes import as_matrix

_CHUNK_BYTES = 64 << 20  # of unfolded inputs at a time

Arguments = tuple[tuple[Any, ...], Mapping[str, Any]]
"""Positional and keyword arguments of a call."""


class LayerView(ABC):
    """A weight as matrices [rows, columns], each with inputs X [n, columns] of its own: Y = X Wᵀ.

    A grouped convolution has a matrix for each group, packed attention one for each projection.
    Columns are input channels, for each kernel position in turn.

    Attributes:
        name: The parameter's name.
        module: What is called.
        parameter: The weight.
        shapes: Rows and columns of each matrix.
        positions: Of the kernel.
        partial: Whether matrices that no sample reaches leave the others as they are.
        by_product: Whether products tell of its inputs, and not calls of its module.
        when_unseen: Why it is left dense where no sample reaches it.
        others: The same weight in other layers that share it, each with inputs of its own.
    """

    partial = by_product = False
    when_unseen = "saw no sample of the calibration data"

    def __init__(self, name: str, module: nn.Module, parameter: nn.Parameter) -> None:
        self.name, self.module, self.parameter = name, module, parameter
        self.others: list[LayerView] = []
        self.shapes: list[tuple[int, int]] = []
        self.positions = 1

    @property
    @abstractmethod
    def index(self) -> list[Tensor]:
        """For each matrix the row-major places of its entries in the weight, [rows, columns].

        Made anew each time: kept, they would take more memory than the weight.
        """

    @abstractmethod
    def sources(self, arguments: Arguments) -> list[Tensor]:
        """For each matrix the tensor that its inputs come from; one tensor may serve several."""

    def rows(self, number: int, source: Tensor) -> Iterator[Tensor]:
        """The inputs of a matrix, [n, columns], in pieces that fit into memory.

        Yields:
            Of all but the last dimension together, where a view says nothing else.
        """
        yield from source.reshape(-1, source.shape[-1]).split(pieces(source.shape[-1]))

    @property
    def layers(self) -> list[LayerView]:
        """The weight in each layer that has it."""
        return [self, *self.others]

    @property
    def unfolding(self) -> object:
        """What distinguishes two views whose inputs are the same tensor."""
        return None

    def matrices(self) -> Sequence[Tensor]:
        """The weight as matrices, float64 copies."""
        flat = self.parameter.detach().reshape(-1).double()
        return [flat[index.to(flat.device)] for index in self.index]

    @torch.no_grad()
    def write(self, matrices: Sequence[Tensor]) -> None:
        """Puts matrices back into the weight, in its own dtype and memory format."""
        self.parameter.copy_(self.assembled(matrices, self.parameter.dtype))

    def assembled(self, matrices: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        """Matrices as one tensor of the weight's shape."""
        flat = torch.zeros(self.parameter.numel(), dtype=dtype, device=self.parameter.device)
        for index, matrix in zip(self.index, matrices, strict=True):
            flat[index.reshape(-1).to(flat.device)] = matrix.reshape(-1).to(flat)
        return flat.view(self.parameter.shape)


def _first_input(arguments: Arguments) -> Tensor:
    positional, named = arguments
    found = positional[0] if positional else next(iter(named.values()))
    assert isinstance(found, Tensor)
    return found.detach()


class LinearView(LayerView):
    """A linear layer, or a transformers `Conv1D` with weight [in, out]."""

    def __init__(self, name: str, module: nn.Module, parameter: nn.Parameter) -> None:
        super().__init__(name, module, parameter)
        outputs, inputs = parameter.shape
        self._turned = is_transformers_conv1d(module)
        self.shapes = [(inputs, outputs) if self._turned else (outputs, inputs)]

    @property
    def index(self) -> list[Tensor]:
        """Of the one matrix."""
        index = torch.arange(self.parameter.numel()).view(self.parameter.shape)
        return [index.T if self._turned else index]

    def sources(self, arguments: Arguments) -> list[Tensor]:
        """The input."""
        return [_first_input(arguments)]


class ConvolutionView(LayerView):
    """A convolution of one to three dimensions, grouped or not: a row for each output position."""

    def __init__(self, name: str, module: nn.Module, parameter: nn.Parameter) -> None:
        super().__init__(name, module, parameter)
        self.groups = int(module.groups)  # type: ignore[arg-type]
        layout = layout_of(module, parameter.shape)
        self._described = PrunableWeight(name, parameter.shape, layout, type(module).__name__, self.groups)
        self.positions = math.prod(parameter.shape[2:])
        rows = int(module.out_channels) // self.groups  # type: ignore[arg-type]
        columns = int(module.in_channels) // self.groups * self.positions  # type: ignore[arg-type]
        self.shapes = [(rows, columns)] * self.groups

    @property
    def index(self) -> list[Tensor]:
        """Of each group."""
        entries = as_matrix(self._described)  # [out, inputs, positions]
        by_group = entries.view(self.groups, -1, *entries.shape[1:]).transpose(2, 3)
        return list(by_group.reshape(self.groups, *self.shapes[0]))

    @property
    def unfolding(self) -> object:
        """Its geometry."""
        m: Any = self.module
        return (m.kernel_size, m.stride, m.dilation, str(m.padding), m.padding_mode, m.groups, type(m).__name__)

    def sources(self, arguments: Arguments) -> list[Tensor]:
        """The input, for every group."""
        x = _first_input(arguments)
        batched = x if x.dim() == len(self.module.kernel_size) + 2 else x[None]  # type: ignore[arg-type]
        return [batched] * self.groups

    def rows(self, number: int, source: Tensor) -> Iterator[Tensor]:
        """The patches of a group's channels."""
        m: Any = self.module
        channels = source.shape[1] // self.groups
        part = source[:, number * channels : (number + 1) * channels]
        places = math.prod(source.shape[2:])
        for piece in part.split(max(1, pieces(channels * self.positions) // max(1, places))):
            yield self._unfolded(piece, m)

    def _unfolded(self, x: Tensor, m: Any) -> Tensor:
        mode = "constant" if m.padding_mode == "zeros" else m.padding_mode
        padding = list(m._reversed_padding_repeated_twice)
        return patches_of(functional.pad(x, padding, mode=mode), m.kernel_size, m.stride, m.dilation)


class TransposedView(ConvolutionView):
    """A transposed convolution: patches of the input spread out by the stride, kernel mirrored."""

    def __init__(self, name: str, module: nn.Module, parameter: nn.Parameter) -> None:
        super().__init__(name, module, parameter)
        self._output_padding: Sequence[int] = module.output_padding  # type: ignore[assignment]

    @property
    def unfolding(self) -> object:
        """Its inputs are unfolded by what each call asks for."""
        return self.name

    def sources(self, arguments: Arguments) -> list[Tensor]:
        """The input, for every group; `rows` are those of the output size that is asked for."""
        m: Any = self.module
        positional, named = arguments
        size = positional[1] if len(positional) > 1 else named.get("output_size")
        self._output_padding = m._output_padding(
            _first_input(arguments), size, m.stride, m.padding, m.kernel_size, len(m.kernel_size), m.dilation
        )
        return super().sources(arguments)

    def _unfolded(self, x: Tensor, m: Any) -> Tensor:
        spatial = x.shape[2:]
        spread = x.new_zeros(*x.shape[:2], *[(n - 1) * s + 1 for n, s in zip(spatial, m.stride, strict=True)])
        spread[(slice(None), slice(None), *[slice(None, None, s) for s in m.stride])] = x
        padding: list[int] = []
        for k, d, p, o in zip(m.kernel_size, m.dilation, m.padding, self._output_padding, strict=True):
            padding = [d * (k - 1) - p, d * (k - 1) - p + o, *padding]
        ones = tuple(1 for _ in m.kernel_size)
        patches = patches_of(functional.pad(spread, padding), m.kernel_size, ones, m.dilation)
        return patches.view(len(patches), self.positions, -1).flip(1).reshape(len(patches), -1)


class AttentionInputView(LayerView):
    """The projections of queries, keys and values of `MultiheadAttention`, packed or separate."""

    def __init__(self, name: str, module: nn.MultiheadAttention, parameter: nn.Parameter) -> None:
        super().__init__(name, module, parameter)
        kinds = ("q_proj_weight", "k_proj_weight", "v_proj_weight")
        own = name.rsplit(".", 1)[-1]
        self.inputs = [kinds.index(own)] if own in kinds else [0, 1, 2]
        self.shapes = [(parameter.shape[0] // len(self.inputs), parameter.shape[1])] * len(self.inputs)

    @property
    def index(self) -> list[Tensor]:
        """Of each projection."""
        return list(torch.arange(self.parameter.numel()).view(self.parameter.shape).chunk(len(self.inputs)))

    def sources(self, arguments: Arguments) -> list[Tensor]:
        """Query, key and value."""
        positional, named = arguments
        every = [*positional, *(named[key] for key in ("query", "key", "value") if key in named)]
        return [every[number].detach() for number in self.inputs]


class AttentionOutputView(LayerView):
    """The output projection of `MultiheadAttention`, which torch computes without calling it."""

    def __init__(self, name: str, module: nn.MultiheadAttention, parameter: nn.Parameter) -> None:
        super().__init__(name, module, parameter)
        self.shapes = [(parameter.shape[0], parameter.shape[1])]
        self._inside = False

    @property
    def index(self) -> list[Tensor]:
        """Of the one matrix."""
        return [torch.arange(self.parameter.numel()).view(self.parameter.shape)]

    @property
    def unfolding(self) -> object:
        """Its inputs are no tensor that others have."""
        return self.name

    def sources(self, arguments: Arguments) -> list[Tensor]:
        """What attention returns where the output projection is the identity."""
        if self._inside:
            return []
        module: Any = self.module
        projection = module.out_proj
        weight, bias = projection.weight, projection.bias
        one = torch.eye(weight.shape[1], dtype=weight.dtype, device=weight.device)
        replaced: dict[str, Any] = {"out_proj.weight": one}
        if bias is not None:
            replaced["out_proj.bias"] = torch.zeros_like(weight[0])
        self._inside = True
        try:
            with torch.no_grad():
                positional, named = arguments
                mixed = torch.func.functional_call(module, replaced, tuple(positional), dict(named))
        finally:
            self._inside = False
        return [mixed[0]]


def check_weights(views: Sequence[LayerView]) -> None:
    """Refuses weights that are not finite; those on disk are not looked at.

    Args:
        views: Of the weights.

    Raises:
        ValueError: If one has a NaN or infinity, by name.
    """
    for view in views:
        if not view.parameter.is_meta and not bool(torch.isfinite(view.parameter).all()):
            raise ValueError(f"Parameter `model` should have finite weights. Found others in {view.name!r}.")


def pieces(columns: int) -> int:
    """How many rows of so many columns fit into memory at a time."""
    return max(1, _CHUNK_BYTES // (4 * max(1, columns)))


def patches_of(x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...]) -> Tensor:
    """Patches [samples · output positions, kernel positions · channels] of padded inputs."""
    outs = [(n - d * (k - 1) - 1) // s + 1 for n, k, s, d in zip(x.shape[2:], kernel, stride, dilation, strict=True)]
    windows = []
    for place in product(*map(range, kernel)):
        window = [
            slice(p * d, p * d + s * (o - 1) + 1, s) for p, d, s, o in zip(place, dilation, stride, outs, strict=True)
        ]
        windows.append(x[(slice(None), slice(None), *window)].flatten(2).transpose(1, 2))  # [n, outs, channels]
    return torch.stack(windows, 2).reshape(-1, len(windows) * x.shape[1])
