"""Rounded models on disk: integers with their scales, two to a byte in 4 bits, and back."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict

import torch
from torch import Tensor, nn

from mfac.gradients.naming import named_parameters, parameter_named
from mfac.layerwise.grid import Grid, GridValues
from mfac.layerwise.report import LayerwiseReport
from mfac.layerwise.views import views_of
from mfac.masks.packing import pack_bits, unpack_bits
from mfac.masks.storage import read_tensors, write_tensors

_KIND = "mfac.quantized"


@torch.no_grad()
def save_quantized(path: str | os.PathLike[str], model: nn.Module, report: LayerwiseReport) -> int:
    """Writes a model whose weights were rounded: integers, scales and masks, and the rest as it is.

    A weight of b <= 4 bits takes half a byte an entry, and a bit an entry for its mask where some
    are dropped. Scales and zeros are float16 where that is exact to 1e-3, otherwise float32.

    Args:
        path: Ends in ".safetensors", ".pt" or ".pth".
        model: As `prune_layerwise(quantize=...)` left it.
        report: What that returned.

    Returns:
        The size of the file in bytes.

    Raises:
        ValueError: If a weight of the report is no longer on its grid, or none was rounded.

    Example:
        >>> import os, tempfile, torch, mfac
        >>> model = torch.nn.Linear(32, 4)
        >>> report = mfac.prune_layerwise(model, [torch.randn(64, 32)], quantize=mfac.Grid(bits=4))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = os.path.join(folder, "model.pt")
        ...     mfac.save_quantized(path, model, report) == os.path.getsize(path)
        True
    """
    rounded = {name: layer.grids for name, layer in report.layers.items() if layer.grids}
    if not rounded:
        raise ValueError("Parameter `report` should be of a run with `quantize`. Found no weight that was rounded.")
    views, _ = views_of(model, list(rounded))
    tensors: dict[str, Tensor] = {}
    about: dict[str, object] = {}
    for view in views:
        grid = rounded[view.name][0].grid
        mask = report.masks[view.name]
        about[view.name] = asdict(grid)
        for number, (matrix, values) in enumerate(zip(view.matrices(), rounded[view.name], strict=True)):
            codes = values.integers(matrix)
            scale, zero = values.expanded(matrix.shape[1])
            again = (codes.double() - zero) * scale
            step = scale.max()
            if bool(((again - matrix).abs() > 0.01 * step).masked_fill(matrix == 0, False).any()):
                raise ValueError(
                    f"Parameter `model` should have its weights where rounding left them. "
                    f"Found others in {view.name!r}."
                )
            tensors[f"{view.name}|integers{number}"] = _packed(codes, grid.bits)
            tensors[f"{view.name}|scales{number}"] = values.scales.float()
            tensors[f"{view.name}|zeros{number}"] = values.zeros.to(torch.uint8)
        if not bool(mask.all()):
            tensors[f"{view.name}|mask"] = pack_bits(mask)
    others = {name: parameter for name, parameter in named_parameters(model).items() if name not in rounded}
    for name, value in {**others, **dict(model.named_buffers())}.items():
        tensors[f"{name}|plain"] = value.detach().clone()
    return write_tensors(path, _KIND, tensors, {"grids": about})


@torch.no_grad()
def load_quantized_(path: str | os.PathLike[str], model: nn.Module) -> dict[str, Tensor]:
    """Reads what `save_quantized` wrote into a model of the same make, as dense weights.

    Args:
        path: The file.
        model: Changed in place; weights in its own dtype.

    Returns:
        Masks by name, True = kept, of the weights that were pruned.

    Raises:
        ValueError: If the file is another, or the model's shapes are.

    Example:
        >>> import os, tempfile, torch, mfac
        >>> model, loaded = torch.nn.Linear(32, 4), torch.nn.Linear(32, 4)
        >>> report = mfac.prune_layerwise(model, [torch.randn(64, 32)], quantize=mfac.Grid(bits=4))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = os.path.join(folder, "model.pt")
        ...     nbytes = mfac.save_quantized(path, model, report)
        ...     masks = mfac.load_quantized_(path, loaded)
        >>> torch.allclose(loaded.weight, model.weight) and torch.equal(masks["weight"], report.masks["weight"])
        True
    """
    tensors, about = read_tensors(path, _KIND)
    grids: Mapping[str, Mapping[str, object]] = about["grids"]
    views, missing = views_of(model, [name for name in grids if name in named_parameters(model)])
    if missing or len(views) != len(grids):
        found = sorted(set(grids) - {view.name for view in views})
        raise ValueError(f"Parameter `model` should have the weights of the file. Found no {found[0]!r}.")
    masks: dict[str, Tensor] = {}
    for view in views:
        grid = Grid(**grids[view.name])  # type: ignore[arg-type]
        matrices = []
        for number, index in enumerate(view.index):
            values = GridValues(
                grid, tensors[f"{view.name}|scales{number}"].double(), tensors[f"{view.name}|zeros{number}"].double()
            )
            codes = _unpacked(tensors[f"{view.name}|integers{number}"], grid.bits, index.numel()).view(index.shape)
            scale, zero = values.expanded(index.shape[1])
            matrices.append((codes.double() - zero) * scale)
        view.write(matrices)
        if f"{view.name}|mask" in tensors:
            masks[view.name] = unpack_bits(tensors[f"{view.name}|mask"], view.parameter.shape)
            view.parameter.mul_(masks[view.name].to(view.parameter.device))
    buffers = dict(model.named_buffers())
    for name, value in tensors.items():
        if name.endswith("|plain"):
            own = name.removesuffix("|plain")
            (buffers[own] if own in buffers else parameter_named(model, own)).copy_(value)
    return masks


def _packed(codes: Tensor, bits: int) -> Tensor:
    flat = codes.reshape(-1)
    if bits > 4:
        return flat
    flat = torch.cat([flat, flat.new_zeros(flat.numel() % 2)]).view(-1, 2)
    return flat[:, 0] | (flat[:, 1] << 4)


def _unpacked(packed: Tensor, bits: int, count: int) -> Tensor:
    if bits > 4:
        return packed
    return torch.stack([packed & 15, packed >> 4], 1).reshape(-1)[:count]
