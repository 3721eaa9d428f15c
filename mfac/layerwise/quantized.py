"""Rounded models on disk: integers with their scales, two to a byte in 4 bits, and back."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import asdict

import torch
from torch import Tensor, nn

from mfac.gradients.naming import named_buffers, named_parameters
from mfac.layerwise.chosen import all_views
from mfac.layerwise.grid import Grid, GridValues
from mfac.layerwise.product_view import Multiplied
from mfac.layerwise.report import LayerwiseReport
from mfac.layerwise.views import LayerView
from mfac.masks.packing import pack_bits, unpack_bits
from mfac.masks.storage import read_tensors, write_tensors

_KIND = "mfac.quantized"


@torch.no_grad()
def save_quantized(path: str | os.PathLike[str], model: nn.Module, report: LayerwiseReport) -> int:
    """Writes a model whose weights were rounded: integers, scales and masks, and the rest as it is.

    A weight of b <= 4 bits takes half a byte an entry, and a bit an entry for its mask where some
    are dropped. A zero takes a byte, and a scale is float32; float64 where float32 has no such
    number. `load_quantized_` makes of them the weights that the model has, bit for bit.

    Args:
        path: Ends in ".safetensors", ".pt" or ".pth".
        model: As `prune_layerwise(quantize=...)` left it.
        report: What that returned.

    Returns:
        The size of the file in bytes.

    Raises:
        ValueError: If a weight of the report is no longer what its step becomes in the weight's
            dtype, if the model has no such weight, or if none was rounded.

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
    layouts = {name: layout for name, layout in report.layouts.items() if name in rounded}
    turned = {
        name: inner != 1 or inputs != report.masks[name].shape[-1] for name, (_, inputs, inner) in layouts.items()
    }
    views = _views(model, {name: list(report.masks[name].shape) for name in rounded}, turned, "report")
    tensors: dict[str, Tensor] = {}
    grids: dict[str, object] = {}
    for view in views:
        mask = report.masks[view.name].cpu()
        grids[view.name] = asdict(rounded[view.name][0].grid)
        pairs = zip(view.matrices(), view.index, rounded[view.name], strict=True)
        for number, (matrix, index, values) in enumerate(pairs):
            written = _as_written(values)
            codes = _integers(written, matrix.cpu(), mask.reshape(-1)[index.cpu()], view.parameter.dtype)
            if codes is None:
                raise ValueError(
                    f"Parameter `model` should have its weights where rounding left them. "
                    f"Found others in {view.name!r}."
                )
            tensors[f"{view.name}|integers{number}"] = _packed(codes, written.grid.bits)
            tensors[f"{view.name}|scales{number}"] = written.scales
            tensors[f"{view.name}|zeros{number}"] = written.zeros
        if not bool(mask.all()):
            tensors[f"{view.name}|mask"] = pack_bits(mask)
    for name, value in _others(model, rounded).items():
        tensors[f"{name}|plain"] = value.detach().clone()
    about = {"grids": grids, "matrices": {view.name: [list(shape) for shape in view.shapes] for view in views}}
    about["shapes"] = {view.name: list(view.parameter.shape) for view in views}
    about["turned"] = turned
    return write_tensors(path, _KIND, tensors, about)


@torch.no_grad()
def load_quantized_(path: str | os.PathLike[str], model: nn.Module) -> dict[str, Tensor]:
    """Reads what `save_quantized` wrote into a model of the same make, as dense weights.

    Args:
        path: The file.
        model: Changed in place; weights in its own dtype.

    Returns:
        Masks by name, True = kept, of the weights that were pruned.

    Raises:
        ValueError: If the file is another, or the model's names or shapes are. Nothing is changed
            then.

    Example:
        >>> import os, tempfile, torch, mfac
        >>> model, loaded = torch.nn.Linear(32, 4), torch.nn.Linear(32, 4)
        >>> report = mfac.prune_layerwise(model, [torch.randn(64, 32)], quantize=mfac.Grid(bits=4))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = os.path.join(folder, "model.pt")
        ...     nbytes = mfac.save_quantized(path, model, report)
        ...     masks = mfac.load_quantized_(path, loaded)
        >>> torch.equal(loaded.weight, model.weight) and torch.equal(masks["weight"], report.masks["weight"])
        True
    """
    tensors, about = read_tensors(path, _KIND)
    grids: Mapping[str, Mapping[str, object]] = about["grids"]
    views = _views(model, about["shapes"], about.get("turned", {}), "file")
    for view in views:
        if (found := [list(shape) for shape in view.shapes]) != about["matrices"][view.name]:
            raise ValueError(
                f"Parameter `model` should have {view.name!r} as matrices of shapes {about['matrices'][view.name]}, as "
                f"the file has. Found {found}."
            )
    others = _others(model, grids)
    plain = {name.removesuffix("|plain"): value for name, value in tensors.items() if name.endswith("|plain")}
    _check_same(others, plain)
    masks: dict[str, Tensor] = {}
    for view in views:
        grid = Grid(**grids[view.name])  # type: ignore[arg-type]
        matrices = []
        for number, index in enumerate(view.index):
            values = _as_read(
                GridValues(grid, tensors[f"{view.name}|scales{number}"], tensors[f"{view.name}|zeros{number}"])
            )
            codes = _unpacked(tensors[f"{view.name}|integers{number}"], grid.bits, index.numel()).view(index.shape)
            matrices.append(values.weights(codes))
        view.write(matrices)
        if f"{view.name}|mask" in tensors:
            masks[view.name] = unpack_bits(tensors[f"{view.name}|mask"], view.parameter.shape)
            view.parameter.mul_(masks[view.name].to(view.parameter.device))
    for name, value in plain.items():
        others[name].copy_(value)
    return masks


def _views(
    model: nn.Module, shapes: Mapping[str, list[int]], turned: Mapping[str, bool], source: str
) -> list[LayerView]:
    """Views of the weights of these names, in these shapes; `turned` is of those of no layer."""
    named = named_parameters(model)
    for name, shape in shapes.items():
        found = list(named[name].shape) if name in named else None
        if found != shape:
            raise ValueError(
                f"Parameter `model` should have a weight {name!r} of shape {shape}, as the {source} has. "
                f"Found {'none' if found is None else found}."
            )
    views, unseen = all_views(model, list(shapes), {name: Multiplied(way, True) for name, way in turned.items()})
    if unseen:
        raise ValueError(
            f"Parameter `model` should have {unseen[0].name!r} as the weight of a layer, as the {source} has. "
            f"Found that it {unseen[0].why}."
        )
    return views


def _others(model: nn.Module, rounded: Collection[str]) -> dict[str, Tensor]:
    """Parameters that were not rounded, and buffers, by their names without wrappers."""
    plain = {name: value for name, value in named_parameters(model).items() if name not in rounded}
    return {**plain, **named_buffers(model)}


def _check_same(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Whether a model has what a file has, and no more."""
    for name in [*wanted, *found]:
        shapes = [list(of[name].shape) if name in of else None for of in (wanted, found)]
        if shapes[0] == shapes[1]:
            continue
        if shapes[0] is None:
            raise ValueError(
                f"Parameter `model` should have no more than the file has. Found {name!r} of shape {shapes[1]}."
            )
        raise ValueError(
            f"Parameter `model` should have {name!r} of shape {shapes[0]}, as the file has. "
            f"Found {'none' if shapes[1] is None else shapes[1]}."
        )


def _as_written(values: GridValues) -> GridValues:
    """Scales and zeros as a file has them, on the CPU."""
    scales = values.scales.cpu()
    single = scales.float()
    return GridValues(
        values.grid,
        single if torch.equal(single.double(), scales) else scales,
        values.zeros.cpu().to(torch.uint8),
    )


def _as_read(written: GridValues) -> GridValues:
    """Scales and zeros to compute with."""
    return GridValues(written.grid, written.scales.double(), written.zeros.double())


def _integers(written: GridValues, matrix: Tensor, kept: Tensor, dtype: torch.dtype) -> Tensor | None:
    """Integers that are read as exactly this matrix in its dtype; None where there are none."""
    values = _as_read(written)
    codes = nearest = values.integers(matrix)
    found = torch.zeros_like(kept)
    for shift in (0, 1, -1):  # rounding to a dtype can bring a weight nearer to the next step
        tried = (nearest.int() + shift).clamp(0, values.grid.levels).to(torch.uint8)
        again = values.weights(tried).masked_fill(~kept, 0).to(dtype).double()
        fits = (again == matrix) & ~found
        codes, found = torch.where(fits, tried, codes), found | fits
    return codes if bool(found.all()) else None


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
