"""A pruned model for elsewhere: a plain state dict, a compact file, 2:4 tensors, ONNX."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from mfac.gradients.examples import largest_gap, outputs_with
from mfac.gradients.modes import model_mode
from mfac.gradients.naming import inner_module, named_layers
from mfac.gradients.vector import memory_of
from mfac.masks.masks import Masks
from mfac.masks.packing import pack_bits, unpack_bits
from mfac.masks.storage import check_suffix, read_tensors, write_tensors

KIND = "mfac.compact"


def plain_state_dict(model: nn.Module, masks: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """The pruned weights as the model itself would have them: no masks, no prefixes of wrappers.

    Args:
        model: The model, wrapped or not, under `torch.nn.utils.prune` or not. It is not changed.
        masks: Masks of the dropped weights; None for the model's values as they are.

    Returns:
        Name to tensor, by reference where nothing had to be computed.

    Raises:
        ValueError: If there is a mask for no tensor, or of another shape.

    Example:
        >>> import torch, mfac
        >>> model = torch.nn.DataParallel(torch.nn.Linear(2, 1, bias=False))
        >>> state = mfac.plain_state_dict(model, {"weight": torch.tensor([[True, False]])})
        >>> state["weight"].count_nonzero().item()
        1
    """
    state = _plain(model)
    for name, mask in (masks or {}).items():
        key = _key(state, name)
        if state[key].shape != mask.shape:
            raise ValueError(
                f"Parameter `masks` should have {name!r} of shape {list(state[key].shape)}. Found {list(mask.shape)}."
            )
        if bool((state[key][~mask.to(state[key].device)] != 0).any()):
            state[key] = state[key].masked_fill(~mask.to(state[key].device), 0)
    return state


@torch.no_grad()
def load_plain_(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Takes a plain state dict into a model, wrapped or not.

    Args:
        model: The model.
        state: Of `plain_state_dict`.

    Raises:
        ValueError: If names or shapes are not the model's; the model is then as it was.
    """
    named = _plain(model, fold=False)
    if named.keys() != state.keys():
        missing, unknown = sorted(named.keys() - state.keys()), sorted(state.keys() - named.keys())
        raise ValueError(
            f"Parameter `model` should have the tensors of the state. Found no {unknown} in the model, "
            f"and no {missing} in the state."
        )
    for name, tensor in named.items():
        if tensor.shape != state[name].shape:
            raise ValueError(
                f"Parameter `model` should have {name!r} of shape {list(state[name].shape)}. "
                f"Found {list(tensor.shape)}."
            )
    for name, tensor in named.items():
        tensor.copy_(state[name])


def save_compact(model: nn.Module, masks: Mapping[str, Tensor], path: str | os.PathLike[str]) -> int:
    """Writes a pruned model: a bit for each masked weight, and the values of the kept weights.

    Everything else of the state dict is written as it is; a tensor with two names is written once.

    Args:
        model: The pruned model, wrapped or not.
        masks: The model's masks.
        path: Ends in ".safetensors", or in ".pt" or ".pth" for torch's own form.

    Returns:
        The size of the file in bytes.

    Raises:
        ValueError: If a dropped weight is not zero, a mask does not fit, or the path ends
            otherwise.
        TypeError: If the state dict holds something that is no tensor.
        ImportError: If safetensors is asked for and not installed.

    Example:
        >>> import os, tempfile, torch, mfac
        >>> model = torch.nn.Linear(400, 100)
        >>> masks = mfac.Masks({"weight": torch.rand(100, 400) < 0.1})
        >>> masks.apply_(model)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     size = mfac.save_compact(model, masks, os.path.join(folder, "model.pt"))
        ...     loaded = torch.nn.Linear(400, 100)
        ...     found = mfac.load_compact_(loaded, os.path.join(folder, "model.pt"))
        >>> size < 4 * 100 * 400 / 5, torch.equal(loaded.weight, model.weight), found == masks
        (True, True, True)
    """
    check_suffix(path)
    state = _plain(model)
    by_key = {_key(state, name): (name, mask) for name, mask in masks.items()}
    tensors: dict[str, Tensor] = {}
    shapes: dict[str, list[int]] = {}
    aliases: dict[str, str] = {}
    first: dict[object, str] = {}
    for key, tensor in state.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(
                f"Parameter `model` should have a state of tensors. Found a {type(tensor).__name__}: {key!r}."
            )
        original = first.setdefault(memory_of(tensor), key)
        if original != key and key not in by_key:
            aliases[key] = original
        elif key not in by_key:
            tensors[f"dense/{key}"] = tensor.clone()
        else:
            name, mask = by_key[key][0], by_key[key][1].to(tensor.device)
            _check_dropped(name, tensor, mask)
            shapes[key] = list(tensor.shape)
            tensors[f"kept/{key}"] = tensor[mask]
            if not bool(mask.all()):
                tensors[f"bits/{key}"] = pack_bits(mask)
    about = {
        "shapes": shapes,
        "aliases": aliases,
        "order": list(state),
        "names": {k: n for k, (n, _) in by_key.items()},
    }
    return write_tensors(path, KIND, tensors, about)


def load_compact_(model: nn.Module, path: str | os.PathLike[str]) -> Masks:
    """Loads a file of `save_compact` into a model.

    Args:
        model: A model with the same names and shapes, wrapped or not.
        path: The file.

    Returns:
        The masks.

    Raises:
        ValueError: If the file is not of `save_compact`, or names or shapes are not the model's;
            the model is then as it was.
        ImportError: If the file is in safetensors' form, and safetensors is not installed.
        FileNotFoundError: If there is no such file.

    Example:
        >>> import os, tempfile, torch, mfac
        >>> masks = mfac.Masks({"weight": torch.tensor([[True, False]])})
        >>> model, other = torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)
        >>> masks.apply_(model)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = mfac.save_compact(model, masks, os.path.join(folder, "model.pt"))
        ...     mfac.load_compact_(other, os.path.join(folder, "model.pt"))
        Masks(1 tensor, 1 of 2 weights kept, sparsity 0.5000)
        >>> torch.equal(other.weight, model.weight)
        True
    """
    tensors, about = read_tensors(path, KIND)
    state: dict[str, Tensor] = {}
    masks: dict[str, Tensor] = {}
    for key in about["order"]:
        if key in about["shapes"]:
            shape, bits, kept = about["shapes"][key], tensors.get(f"bits/{key}"), tensors[f"kept/{key}"]
            mask = torch.ones(shape, dtype=torch.bool) if bits is None else unpack_bits(bits, shape)
            state[key] = torch.zeros(shape, dtype=kept.dtype).masked_scatter_(mask, kept)
            masks[about["names"][key]] = mask
        elif key not in about["aliases"]:
            state[key] = tensors[f"dense/{key}"]
    state.update({key: state[original] for key, original in about["aliases"].items()})
    load_plain_(model, state)
    return Masks(masks)


def to_semi_structured_(model: nn.Module) -> dict[str, str]:
    """Turns 2:4 weights of linear layers into torch's semi-structured tensors, for inference.

    Args:
        model: On a GPU, in a dtype that its sparse tensor cores take.

    Returns:
        Name of every linear weight that stays dense, and why.

    Raises:
        RuntimeError: If the model is not on a GPU of compute capability 8.0 or above.
        ValueError: If no weight could be turned; the model is then as it was.

    Example:
        >>> import torch, mfac
        >>> try:
        ...     stays = mfac.to_semi_structured_(torch.nn.Linear(64, 64))
        ... except RuntimeError as error:  # on a CPU
        ...     print(str(error)[:28])
        Semi-structured tensors need
    """
    device = next(model.parameters()).device
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 0):
        raise RuntimeError(
            f"Semi-structured tensors need a GPU of compute capability 8.0 or above: call model.to('cuda') where there "
            f"is one. Found the model on {str(device)!r}."
        )
    stays: dict[str, str] = {}
    turned = {}
    for layer_name, layer in named_layers(model):
        if not isinstance(layer, nn.Linear):
            continue
        name = f"{layer_name}.weight" if layer_name else "weight"
        weight = layer._parameters.get("weight")
        if weight is None:
            stays[name] = "is computed from others"
        elif weight.shape[1] % 4 or int((weight.view(-1, weight.shape[1] // 4, 4) != 0).sum(2).max()) > 2:
            stays[name] = "is not 2:4"
        else:
            try:
                turned[layer] = nn.Parameter(torch.sparse.to_sparse_semi_structured(weight.detach()), False)
            except (RuntimeError, ValueError) as error:  # of a shape or dtype that the hardware does not take
                stays[name] = f"is refused by torch: {error}"
    if not turned:
        raise ValueError(f"Parameter `model` should have linear weights that are 2:4. Found none: {stays}.")
    for layer, parameter in turned.items():
        layer.weight = parameter
    return stays


def export_onnx(
    model: nn.Module, example: Any, path: str | os.PathLike[str], *, tolerance: float = 1e-4, **options: Any
) -> float:
    """Writes a model as ONNX, runs the file, and compares its outputs with the model's.

    Args:
        model: The model, wrapped or not; its modes are put back.
        example: An input, or a tuple of several.
        path: Of the file.
        tolerance: How far an output may be from the model's, relative to the largest of that output
            and at least 1.
        **options: For `torch.onnx.export`, such as `dynamic_shapes`.

    Returns:
        The largest difference, measured as for `tolerance`.

    Raises:
        ImportError: If onnx, onnxscript or onnxruntime is not installed.
        ValueError: If outputs differ by more than `tolerance`; the file is left for inspection.

    Example:
        >>> import tempfile, torch, mfac
        >>> try:
        ...     with tempfile.TemporaryDirectory() as folder:
        ...         gap = mfac.export_onnx(torch.nn.Linear(2, 2), torch.ones(1, 2), folder + "/a.onnx")
        ... except ImportError:  # onnx, onnxscript and onnxruntime are optional
        ...     gap = 0.0
        >>> gap < 1e-4
        True
    """
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise ImportError(
            f"ONNX that is checked by running it needs `pip install onnx onnxscript onnxruntime`. Found no {missing}."
        )
    import onnxruntime

    model = inner_module(model)
    inputs = tuple(example) if isinstance(example, tuple | list) else (example,)
    expected = outputs_with(model, inputs)
    with model_mode(model, "eval"):
        torch.onnx.export(model, inputs, os.fspath(path), dynamo=True, verbose=False, **options)
    session = onnxruntime.InferenceSession(os.fspath(path), providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]
    found = session.run(None, {n: t.detach().cpu().numpy() for n, t in zip(names, inputs, strict=True)})
    worst = largest_gap(expected, [torch.as_tensor(one) for one in found])
    if not worst <= tolerance:
        raise ValueError(
            f"The outputs of {os.fspath(path)!r} should be the model's within {tolerance:g}. Found a difference of "
            f"{worst:.3g}."
        )
    return worst


def _check_dropped(name: str, tensor: Tensor, mask: Tensor) -> None:
    if tensor.shape != mask.shape:
        raise ValueError(
            f"Parameter `masks` should have {name!r} of shape {list(tensor.shape)}. Found {list(mask.shape)}."
        )
    wrong = int((tensor[~mask] != 0).sum())
    if wrong:
        raise ValueError(
            f"Parameter `model` should have zeros where `masks` drops weights: call masks.apply_(model). "
            f"Found {wrong} others in {name!r}."
        )


def _key(state: Mapping[str, Tensor], name: str) -> str:
    """The key of a masked parameter in a plain state dict."""
    for key in (name, name.removesuffix("_orig")):
        if key in state:
            return key
    raise ValueError(
        f"Parameter `masks` should name tensors of the model. Found {name!r}, which is none of {list(state)}."
    )


def _plain(model: nn.Module, *, fold: bool = True) -> dict[str, Tensor]:
    """The state dict without wrappers' prefixes, by reference; `fold` drops torch's pruning too."""
    model = inner_module(model)
    prefixes = []
    for name, module in model.named_modules(remove_duplicate=False):
        if inner_module(module) is not module:  # a wrapper within the model
            inside = "_orig_mod." if type(module).__name__ == "OptimizedModule" else "module."
            prefixes.append((f"{name}.", f"{name}.{inside}"))
    state = {}
    for key, tensor in model.state_dict().items():
        for short, long in reversed(prefixes):  # from the inside outwards
            if key.startswith(long):
                key = short + key[len(long) :]
        state[key] = tensor
    if fold:
        for key in [key for key in state if key.endswith("_orig") and f"{key[:-5]}_mask" in state]:
            name = key.removesuffix("_orig")
            state[name] = state.pop(key) * state.pop(f"{name}_mask")
    return state
