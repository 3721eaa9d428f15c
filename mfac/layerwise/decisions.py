"""Whether what a model does between its blocks hangs on numbers that they compute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

_READS = frozenset({"tolist", "numpy", "__array__", "data_ptr", "untyped_storage", "__dlpack__"})
"""Methods of a tensor that hand its numbers to Python, and that the dispatcher does not see."""


class Decisions:
    """Notices where numbers of tensors reach Python, while it listens; a context.

    Attributes:
        listening: Whether it does.
        found: Whether there was one.
    """

    def __init__(self) -> None:
        self.listening = self.found = False
        self._stack = ExitStack()

    def __enter__(self) -> Decisions:
        self._stack.enter_context(_Methods(self))
        self._stack.enter_context(_Operators(self))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def note(self, decides: bool) -> None:
        """Notes a call, if it listens.

        Args:
            decides: Whether numbers reach Python in it.
        """
        self.found = self.found or (self.listening and decides)


class _Methods(TorchFunctionMode):
    def __init__(self, decisions: Decisions) -> None:
        super().__init__()
        self._decisions = decisions

    def __torch_function__(
        self, func: Any, types: Sequence[Any], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        self._decisions.note(getattr(func, "__name__", "") in _READS)
        return func(*args, **(kwargs or {}))


class _Operators(TorchDispatchMode):
    def __init__(self, decisions: Decisions) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._decisions = decisions

    def __torch_dispatch__(
        self, func: Any, types: Sequence[Any], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        tags = getattr(func, "tags", ())
        self._decisions.note(torch.Tag.data_dependent_output in tags or torch.Tag.dynamic_output_shape in tags)
        return func(*args, **(kwargs or {}))
