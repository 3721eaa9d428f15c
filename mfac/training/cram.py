"""CrAM: training for networks that lose little when they are compressed in one shot."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer

from mfac.core.checks.choices import check_flag
from mfac.core.checks.numbers import check_count, check_number
from mfac.core.selection import highest
from mfac.distributed.sharding import local_like
from mfac.gradients.prunable import describe_weights, weight_names
from mfac.masks.patterns import NM, Candidates, resolve_pattern
from mfac.training.tensors import local, whole

Compression = float | str
"""A share of zeros, or a pattern "N:M"."""


class CrAM(Optimizer):
    r"""CrAM and CrAM+ around any optimizer: steps against the gradient at compressed weights.

    A step takes the gradient g at θ, goes to θ̃ = C(θ + ρg), with all but the largest weights set
    to zero, and takes the gradient there, of the kept weights alone: g̃ = mask ∘ ∇L(θ̃). The base
    optimizer then moves θ by g̃, or by g + g̃ for CrAM+. How much C drops is drawn anew in each
    step. The network that comes out may be pruned in one shot, to any of these sparsities, and
    loses little; running statistics of batch normalisation should then be taken anew, by
    `mfac.reestimate_batchnorm`.

    **A step costs two passes forwards and backwards**, and memory for two copies of the weights.

    Args:
        base: The optimizer. CrAM shares its groups and its state, so that schedulers work on either
            of them.
        rho: ρ, >= 0; not normalised by ‖g‖. The paper takes 0.05, and 0.2 on CIFAR-10.
        sparsities: Shares of zeros, or patterns "N:M", of which one is drawn in each step.
        plus: Whether the step is against g + g̃, as CrAM+, which keeps the dense network good.
        seed: Of the draws, which are the same on every process.

    Raises:
        TypeError: If `base` is no optimizer or one that needs a closure, or a number is none.
        ValueError: If a number is out of range, or there is nothing to draw.

    C drops among the weights of linear layers, convolutions, recurrent layers and attentions that a
    forward pass of the closure calls, all in one ranking, and inside each group of a pattern; it
    leaves out biases, norms and embeddings, tied ones too. DTensors are ranked whole. Where no such
    module is called, C takes every parameter of two or more dimensions. Buffers that the pass at θ̃
    changes, as running statistics, are put back: they come from the clean pass alone.

    Source: Peste, Vladu, Kurtic, Lampert, Alistarh, "CrAM" (2207.14200), Algorithm 1.

    Example:
        >>> import torch, mfac
        >>> model = torch.nn.Linear(8, 2)
        >>> opt = mfac.CrAM(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), rho=0.05)
        >>> def closure():
        ...     opt.zero_grad()
        ...     loss = model(torch.ones(4, 8)).square().mean()
        ...     loss.backward()
        ...     return loss
        >>> losses = [opt.step(closure).item() for _ in range(5)]
        >>> losses[-1] < losses[0]
        True
    """

    def __init__(
        self,
        base: Optimizer,
        rho: float = 0.05,
        sparsities: Sequence[Compression] = (0.5, 0.7, 0.9),
        plus: bool = True,
        *,
        seed: int = 0,
    ) -> None:
        if not isinstance(base, Optimizer):
            raise TypeError(f"Parameter `base` should be a torch.optim.Optimizer. Found {type(base).__name__}.")
        if isinstance(base, LBFGS):
            raise TypeError("Parameter `base` should take its steps without a closure. Found LBFGS.")
        self.base, self.rho = base, check_number("rho", rho, least=0)
        self.plus, self.steps, self.seed = check_flag("plus", plus), 0, check_count("seed", seed)
        self.sparsities = [_compression(value) for value in sparsities]
        if not self.sparsities:
            raise ValueError("Parameter `sparsities` should hold at least one. Found none.")
        self._share()

    def _share(self) -> None:
        """What torch's tools look for on an optimizer, all of it the base's."""
        super().__init__([torch.empty(0)], {})  # hooks of this object's own
        self.defaults, self.state, self.param_groups = self.base.defaults, self.base.state, self.base.param_groups
        self.base.register_load_state_dict_post_hook(lambda _: self._follow())

    def __getattr__(self, name: str) -> Any:
        if name in ("keep_columns", "held_gradients", "elementwise_state") and "base" in self.__dict__:  # of mfac.MFAC
            return getattr(self.base, name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __getstate__(self) -> dict[str, Any]:
        """What copies and pickles hold."""
        return {name: self.__dict__[name] for name in ("base", "rho", "plus", "steps", "seed", "sparsities")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Takes up what `__getstate__` gave."""
        self.__dict__.update(state)
        self._share()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group to the base.

        Args:
            param_group: As the base takes it.
        """
        if hasattr(self, "param_groups") and self.param_groups is self.base.param_groups:
            self.base.add_param_group(param_group)
        else:
            super().add_param_group(param_group)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Takes a step.

        Args:
            closure: Clears the gradients, computes the loss, calls `backward()`, returns the loss.
                Called twice.

        Returns:
            The loss at θ.

        Raises:
            ValueError: If there is no closure.
        """
        if closure is None:
            raise ValueError(
                "Parameter `closure` should be a function that computes loss and gradients, as CrAM takes them twice "
                "in a step. Found None."
            )
        parameters = [p for group in self.base.param_groups for p in group["params"] if p.requires_grad]
        called: list[nn.Module] = []
        with torch.enable_grad(), _watching(called):
            loss = closure()
        clean = [None if p.grad is None else p.grad.detach().clone() for p in parameters]
        before = [p.detach().clone() for p in parameters]
        buffers = _buffers_of(called)
        try:
            for parameter, gradient in zip(parameters, clean, strict=True):
                if gradient is not None:
                    parameter.add_(gradient, alpha=self.rho)
            masks = self._compress_(parameters, called)
            with torch.enable_grad():
                closure()
        finally:
            for parameter, value in zip(parameters, before, strict=True):
                parameter.copy_(value)
            for owner, name, buffer, value in buffers:
                buffer.copy_(value)
                owner._buffers[name] = buffer
        for parameter, gradient in zip(parameters, clean, strict=True):
            if parameter.grad is not None:
                if parameter in masks:
                    local(parameter.grad).masked_fill_(~masks[parameter], 0)
                if self.plus and gradient is not None:
                    parameter.grad.add_(gradient)
            elif self.plus and gradient is not None:
                parameter.grad = gradient
        self.base.step()
        self.steps += 1
        self._follow()
        return loss

    def _follow(self) -> None:
        """Takes up the state and the groups that the base has put in place of its former ones."""
        if self.state is not self.base.state:
            self.state = self.base.state
        if self.param_groups is not self.base.param_groups:
            self.param_groups = self.base.param_groups

    def drawn(self, step: int) -> Compression:
        """How much is dropped in a step.

        Args:
            step: From 0.

        Returns:
            One of `sparsities`; a function of seed and step alone.
        """
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        return self.sparsities[int(torch.randint(len(self.sparsities), (), generator=generator))]

    def _compress_(self, parameters: Sequence[nn.Parameter], called: Sequence[nn.Module]) -> dict[Tensor, Tensor]:
        """C, in place: sets all but the largest weights to zero.

        Returns:
            Parameter to mask of what this process has of it, True = kept.
        """
        weights = _weights_of(called, parameters)
        how = self.drawn(self.steps)
        masks: dict[Tensor, Tensor] = {}
        if not weights:
            return masks
        if isinstance(how, str):
            pattern = resolve_pattern(how)
            holders = nn.ModuleList(called)
            for weight in weights:
                (about,) = describe_weights(holders, {"": weight})
                flat = whole(weight.detach()).reshape(-1).abs()
                live = torch.ones_like(flat, dtype=torch.bool)
                units = pattern.units(Candidates([about], live, flat.double()))
                masks[weight] = ~units.lowest(units.droppable()).view(weight.shape)
        else:
            sizes = [weight.numel() for weight in weights]
            dtype = torch.float64 if any(w.dtype == torch.float64 for w in weights) else torch.float32
            sizes_of = torch.cat([whole(weight.detach()).reshape(-1).abs().to(dtype) for weight in weights])
            kept = highest(sizes_of, sizes_of.numel() - round(how * sizes_of.numel()))
            masks.update({w: mask.view(w.shape) for w, mask in zip(weights, kept.split(sizes), strict=True)})
        for each, mask in masks.items():
            if hasattr(each, "to_local"):
                masks[each] = local_like(mask, each)
            local(each).masked_fill_(~masks[each], 0)
        return masks

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As the base's.

        Args:
            set_to_none: As of torch.
        """
        self.base.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """The base's state dict, with the number of steps as "cram"."""
        return {**self.base.state_dict(), "cram": {"steps": self.steps, "seed": self.seed}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up a state of `state_dict`, or of the base alone.

        Args:
            state_dict: The state.
        """
        state = dict(state_dict)
        own = state.pop("cram", {"steps": 0, "seed": self.seed})
        self.base.load_state_dict(state)
        self.steps, self.seed = int(own["steps"]), int(own["seed"])
        self.state, self.param_groups = self.base.state, self.base.param_groups

    def __repr__(self) -> str:
        return f"CrAM({self.base!r}, rho={self.rho:g}, sparsities={self.sparsities}, plus={self.plus})"


def _compression(value: Any) -> Compression:
    if isinstance(value, str):
        if not isinstance(resolve_pattern(value), NM):
            raise ValueError(f"Parameter `sparsities` should hold numbers or patterns 'N:M'. Found {value!r}.")
        return value
    return check_number("sparsities", value, above=0, below=1)


@contextmanager
def _watching(called: list[nn.Module]) -> Generator[None, None, None]:
    """Lists the modules that are called meanwhile, with all modules within them, once each."""
    seen: set[int] = set()

    def hook(module: nn.Module, _: Any) -> None:
        if id(module) not in seen:
            for inner in module.modules():
                if id(inner) not in seen:
                    seen.add(id(inner))
                    called.append(inner)

    handle = nn.modules.module.register_module_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def _buffers_of(called: Sequence[nn.Module]) -> list[tuple[nn.Module, str, Tensor, Tensor]]:
    """Owner, name, buffer and a copy of it, of every buffer of some modules."""
    return [
        (module, name, buffer, buffer.clone())
        for module in called
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]


def _weights_of(called: Sequence[nn.Module], parameters: Sequence[nn.Parameter]) -> list[nn.Parameter]:
    """The weights that C drops from, in the optimizer's order."""
    prunable = {id(module._parameters.get(name)) for module in called for name in weight_names(module)}
    tables = {id(module.weight) for module in called if isinstance(module, nn.Embedding | nn.EmbeddingBag)}
    found = [p for p in parameters if id(p) in prunable - tables]
    return found or [p for p in parameters if p.dim() > 1]
