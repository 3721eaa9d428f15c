"""M-FAC as an optimizer: descent preconditioned by the inverse Fisher of the last m gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from mfac.core.checks.choices import check_storage
from mfac.core.checks.numbers import check_count, check_number
from mfac.core.checks.state import check_like
from mfac.core.devices import check_device, check_same_device
from mfac.curvature.damping import Damping, check_damping
from mfac.window.descent import Descent
from mfac.window.formats.named import Format
from mfac.window.window import GradientWindow

_OWN_STATE = ("window", "momentum")


class MFAC(Optimizer):
    r"""M-FAC: :math:`w \leftarrow w - \eta v`, :math:`v \leftarrow \beta v + (1 - \beta) F^{-1} g`.

    F = λI + (1/m) Σ gᵢgᵢᵀ over the last m gradients, the newest included. One window serves all
    parameters, so the curvature between layers counts too. A step costs two passes over the window
    at memory speed and O(m²); memory is the window (`window.nbytes`, known before the first step),
    the momentum, and O(d). A `window_dtype` of 16 or 8 bits, or a `density` below 1, makes time and
    memory smaller; the step is then exact for the gradients as stored.

    For near-orthogonal gradients and small λ the step is about m·g/‖g‖²: the rank is a hidden
    multiplier of the learning rate, and a rate that suits SGD does not suit M-FAC. The step is at
    most g/λ. The defaults are moderate: 32 rows of 25 million weights take 3.2 GB in float32, and
    λ = 0.01 bounds steps while gradients shrink.

    Source: M-FAC (Frantar, Kurtic, Alistarh, NeurIPS 2021), section 4 and its Algorithm 2. Momentum
    is the paper's, an exponential average of preconditioned gradients; with a `density` below 1 the
    weights that enter the window in a step have no momentum, as error feedback has delayed them
    already (docs/derivation.md, (7)). Weight decay is the paper's too: the gradient of the
    regularised loss, g + weight_decay · w, enters the window; with `decoupled_weight_decay` the
    window sees g alone and weights shrink by lr · weight_decay · w instead.

    Args:
        params: Parameters or groups of them. `lr`, `momentum` and `weight_decay` may differ by
            group.
        lr: Learning rate η, >= 0.
        rank: m, gradients in the window.
        damping: λ > 0, or `mfac.relative(c)`.
        momentum: β, in [0, 1).
        weight_decay: >= 0.
        window_dtype: float32, float64, bfloat16, float16 or int8, the last with a scale for every
            1024 weights.
        density: Share of each gradient that enters the window, its largest entries, in (0, 1]; the
            rest is added to the next gradient (error feedback).
        normalize: "rank" divides the sum by m from the first step on, as the paper does; "filled"
            by the gradients seen so far, which makes the first m steps smaller.
        decoupled_weight_decay: Whether weight decay stays out of the window.
        window_format: A format of your own, as `format` of `mfac.GradientWindow`, in place of dtype
            and density.

    Raises:
        TypeError: If a type or dtype is wrong.
        ValueError: If a value is out of range.

    Example:
        >>> import torch, mfac
        >>> model = torch.nn.Linear(4, 1)
        >>> opt = mfac.MFAC(model.parameters(), lr=1e-3, rank=8, damping=1e-3)
        >>> for _ in range(3):
        ...     opt.zero_grad()
        ...     model(torch.ones(2, 4)).square().mean().backward()
        ...     opt.step()
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        rank: int = 32,
        damping: Damping = 1e-2,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        window_dtype: torch.dtype = torch.float32,
        density: float = 1.0,
        *,
        normalize: str = "rank",
        decoupled_weight_decay: bool = False,
        window_format: Format | None = None,
    ) -> None:
        check_count("rank", rank, least=1)
        check_damping(damping)
        check_storage("window_dtype", window_dtype, density)
        self._window: GradientWindow | None = None  # while the groups are being added
        self._average: Tensor | None = None  # v, [d], once a step has momentum
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.decoupled_weight_decay = decoupled_weight_decay
        parameters = self._parameters()
        dim, device = sum(parameter.numel() for parameter in parameters), parameters[0].device
        self._window = GradientWindow(rank, dim, damping, window_dtype, density, device, normalize, window_format)

    @property
    def window(self) -> GradientWindow:
        """The gradients that F is made of."""
        if self._window is None:
            raise RuntimeError("The window does not exist before the optimizer is complete.")
        return self._window

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group while the optimizer is being made.

        Args:
            param_group: As for every torch optimizer.

        Raises:
            RuntimeError: If the window already exists: its width is that of all parameters.
            TypeError: If a parameter is not real floating-point.
            ValueError: If a value is out of range.
        """
        if self._window is not None:
            raise RuntimeError(
                "Parameter groups cannot be added later: the window's width is fixed. Make a new optimizer."
            )
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        self._check_options(group)
        for parameter in group["params"]:
            if not parameter.is_floating_point():
                raise TypeError(f"Parameter `params` should be real floating-point. Found {parameter.dtype}.")
            check_device("params", parameter.device)
            check_same_device("params", parameter.device, self._parameters()[0].device)

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Takes one step.

        A parameter without a gradient counts as zero in the window and is left as it is.

        Args:
            closure: Computes the loss again and returns it, as for every torch optimizer.

        Returns:
            What the closure returned, or None.

        Raises:
            RuntimeError: If no parameter has a gradient.
            TypeError: If a gradient is sparse.
            ValueError: If a gradient holds a NaN or infinity; window and parameters are as they
                were. If a relative damping comes out beyond float64's range; the parameters are as
                they were.
            torch.linalg.LinAlgError: If λ is too small for float64; the parameters are as they
                were.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.window.push(self._flat_gradient())
        self.window.descend_(self._descent())
        return loss

    def _descent(self) -> Descent:
        """How the parameters that have a gradient move."""
        if all(group["momentum"] == 0 for group in self.param_groups):
            self._average = None  # what it was is not taken up again later
        elif self._average is None:
            self._average = torch.zeros_like(self._vector)
        descent, column = Descent(self._average), 0
        for group in self.param_groups:
            decay = 1 - group["lr"] * group["weight_decay"] if self.decoupled_weight_decay else 1.0
            for parameter in group["params"]:
                if parameter.grad is not None:
                    descent.add(parameter, column, float(group["lr"]), float(decay), float(group["momentum"]))
                column += parameter.numel()
        return descent

    @staticmethod
    def _check_options(group: dict[str, Any]) -> None:
        for name in ("lr", "momentum", "weight_decay"):
            if name not in group:
                raise KeyError(f"Every parameter group should have an entry {name!r}. Found {sorted(group)}.")
        check_number("lr", group["lr"], least=0)
        check_number("momentum", group["momentum"], least=0, below=1)
        check_number("weight_decay", group["weight_decay"], least=0)

    def _parameters(self) -> list[Tensor]:
        return [parameter for group in self.param_groups for parameter in group["params"]]

    @cached_property
    def _vector(self) -> Tensor:
        """[d], of the gradient: memory that a step would otherwise ask the system for anew."""
        return torch.empty(self.window.dim, dtype=self.window.vector_dtype, device=self.window.device)

    @cached_property
    def _pieces(self) -> list[Tensor]:
        """`_vector` in the parameters' shapes, by reference."""
        parameters = self._parameters()
        pieces = self._vector.split([parameter.numel() for parameter in parameters])
        return [piece.view(p.shape) for piece, p in zip(pieces, parameters, strict=True)]

    def _with_pieces(self) -> Iterator[tuple[dict[str, Any], list[tuple[Tensor, Tensor]]]]:
        """Every group, and its parameters with their pieces."""
        pieces = iter(self._pieces)
        for group in self.param_groups:
            yield group, [(parameter, next(pieces)) for parameter in group["params"]]

    def _flat_gradient(self) -> Tensor:
        """g, [d], zero where a parameter has no gradient; valid until the next use of `_vector`."""
        if any(piece.shape != p.shape for piece, p in zip(self._pieces, self._parameters(), strict=True)):
            del self._pieces  # a parameter was reshaped
        gradients = [parameter.grad for parameter in self._parameters() if parameter.grad is not None]
        if not gradients:
            raise RuntimeError("No parameter has a gradient. Call backward() before step().")
        if any(gradient.is_sparse for gradient in gradients):
            raise TypeError("Parameter `params` should have dense gradients. Found a sparse one.")
        for group, pairs in self._with_pieces():
            for parameter, piece in pairs:
                if parameter.grad is None:
                    piece.zero_()
            used = [pair for pair in pairs if pair[0].grad is not None]
            if not used:
                continue
            parameters, pieces = zip(*used, strict=True)
            torch._foreach_copy_(pieces, [parameter.grad for parameter in parameters])
            if group["weight_decay"] and not self.decoupled_weight_decay:
                torch._foreach_add_(pieces, parameters, alpha=group["weight_decay"])
        return self._vector

    @cached_property
    def _columns(self) -> dict[int, int]:
        """The first column of each parameter, by its identity."""
        columns, column = {}, 0
        for parameter in self._parameters():
            columns[id(parameter)] = column
            column += parameter.numel()
        return columns

    def elementwise_state(self, parameter: Tensor) -> list[Tensor]:
        """The momentum of a parameter, which lies outside `state`, for `Masks.attach` to clear.

        Args:
            parameter: Of this optimizer, or not.

        Returns:
            Tensors of its shape, by reference; none where there is no momentum.
        """
        column = self._columns.get(id(parameter))
        if self._average is None or column is None:
            return []
        return [self._average[column : column + parameter.numel()].view(parameter.shape)]

    def __getstate__(self) -> dict[str, Any]:
        """What copies and pickles hold; torch's own would leave the window out."""
        mine = {name: getattr(self, name) for name in ("_window", "_average", "decoupled_weight_decay")}
        return {**super().__getstate__(), **mine}

    def state_dict(self) -> dict[str, Any]:
        """As every torch optimizer's, with the window and the momentum; tensors by reference."""
        return {**super().state_dict(), "window": self.window.state_dict(copy=False), "momentum": self._average}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up the state of another optimizer of the same parameters, and goes on as the other.

        Args:
            state_dict: What `state_dict` returned. Copied.

        Raises:
            KeyError: If the state has no window or momentum, or a group lacks an option.
            TypeError: If an entry is of another type.
            ValueError: If groups or shapes differ or an option is out of range. After any of these
                the optimizer is as it was.
        """
        for name in _OWN_STATE:
            if name not in state_dict:
                raise KeyError(f"Parameter `state_dict` should have an entry {name!r}. Found {sorted(state_dict)}.")
        self.window.check_state(state_dict["window"])
        for group in state_dict.get("param_groups", ()):
            self._check_options(group)
        average = None
        if state_dict["momentum"] is not None:
            check_like("state_dict", "momentum", state_dict["momentum"], self._vector)
            average = torch.empty_like(self._vector).copy_(state_dict["momentum"])
        super().load_state_dict({name: value for name, value in state_dict.items() if name not in _OWN_STATE})
        self.window.load_state_dict(state_dict["window"])
        self._average = average
