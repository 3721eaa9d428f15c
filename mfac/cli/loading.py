"""What a command line names, `file.py:name` or `package.module:name`, loaded."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import nn


def load_object(argument: str, text: str) -> Any:
    """The object that a place names.

    Args:
        argument: The command line's name for it, for the message.
        text: `file.py:name` or `package.module:name`.

    Returns:
        The object. The file's folder can be imported from, as if the file had been run.

    Raises:
        ValueError: If there is no colon, no such file or module, or nothing of that name in it.
    """
    place, colon, name = text.rpartition(":")
    if not colon or not place or not name:
        raise ValueError(f"Parameter `{argument}` should be file.py:name or package.module:name. Found {text!r}.")
    module = _module_of_file(argument, Path(place)) if place.endswith(".py") else _module(argument, place)
    if not hasattr(module, name):
        raise ValueError(f"Parameter `{argument}` should name something in {place!r}. Found no {name!r} there.")
    return getattr(module, name)


def load_model(text: str) -> nn.Module:
    """The model that a factory makes, or the model itself.

    Args:
        text: Where it is.

    Returns:
        The model.

    Raises:
        TypeError: If it is something else.
    """
    found = load_object("model", text)
    model = found if isinstance(found, nn.Module) or not callable(found) else found()
    if not isinstance(model, nn.Module):
        raise TypeError(f"Parameter `model` should name a torch.nn.Module or what makes one. Found a {_kind(model)}.")
    return model


def load_data(text: str) -> Iterable[Any]:
    """The batches that a function returns, or the iterable itself.

    Args:
        text: Where it is.

    Returns:
        The iterable.

    Raises:
        TypeError: If it is something else.
    """
    found = load_object("data", text)
    data = found() if callable(found) and not isinstance(found, Iterable) else found
    if not isinstance(data, Iterable):
        raise TypeError(f"Parameter `data` should name batches or what makes them. Found a {_kind(data)}.")
    return data


def _module(argument: str, name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and name.startswith(error.name):
            raise ValueError(f"Parameter `{argument}` should be in a module. Found no module {name!r}.") from None
        raise  # of something that the module itself imports


def _module_of_file(argument: str, path: Path) -> Any:
    path = path.resolve()
    if not path.exists():
        raise ValueError(f"Parameter `{argument}` should be in a file. Found none at {str(path)!r}.")
    name = f"_mfac_cli_{path.stem}_{abs(hash(path))}"
    if name in sys.modules:
        return sys.modules[name]
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _kind(value: object) -> str:
    return type(value).__name__
