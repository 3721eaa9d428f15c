"""M-FAC as an optimizer: descent preconditioned by the inverse Fisher of the last m gradients."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal, overload

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from mfac.core.checks.choices import check_choice
from mfac.curvature.damping import Damping
from mfac.distributed.sharding import Group, pieces_for
from mfac.optim.columns import trains
from mfac.optim.group_window import GroupWindow
from mfac.optim.options import OPTIONS, check_changes, check_options, complete, in_group, packed, refuse_unknown
from mfac.optim.rules.base import Rule
from mfac.optim.rules.named import RuleName
from mfac.optim.state import ELEMENTWISE, Loaded, is_shown, published
from mfac.window.formats.named import Format
from mfac.window.window import GradientWindow

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class MFAC(Optimizer):
    r"""M-FAC: a step along the window of the last m gradients, preconditioned by their Fisher.

    F = λI + (1/m) Σ gᵢgᵢᵀ over the last m gradients, the newest included. A step costs two passes
    over the window at memory speed and O(m²). Memory is the window (`window.nbytes`, known before
    the first step) and O(d). Every parameter group has a window of its own; `mfac.group_parameters`
    makes groups by layer or by kind. A `window_dtype` of 16 or 8 bits, or a `density` below 1,
    makes time and memory smaller; the step is then exact for the gradients as stored.

    Args:
        params: Parameters or groups of them. Every option but `nonfinite` and `process_group` may
            stand in a group. Frozen parameters take no memory.
        lr: Learning rate η, >= 0. None for the rule's own: 0.01 for "spectral", 3e-3 for "adam",
            0.03 for "leave_one_out", 1e-3 for "paper".
        rank: m, gradients in a window. None for the rule's own: 64, or 32 for "paper".
        damping: `mfac.row_relative(ρ)`: nλ is ρ times the mean squared norm of the gradients; or
            `mfac.relative(c)`, or λ > 0. None for the rule's own: row_relative(3) for "spectral",
            λ = 0.01 for "paper", otherwise row_relative(1).
        momentum: β, in [0, 1). None for the rule's own: 0.9, or 0 for "paper".
        weight_decay: >= 0.
        window_dtype: float32, float64, bfloat16, float16 or int8, the last with a scale for every
            1024 weights.
        density: Share of each gradient that enters the window, its largest entries, in (0, 1]; the
            rest is added to the next gradient (error feedback).
        rule: Which combination of the window's gradients a step moves along.
            "spectral": "adam" with the orthogonal factor of each matrix's update. "adam": the
            leave-one-out rule in Adam's metric; learning rates of both are like AdamW's.
            "leave_one_out": each gradient preconditioned by the others; SGD's learning rate is an
            upper bound. "paper": F⁻¹g, as published; λ and m scale the step. "auto": "paper" where
            `damping` is a number or `mfac.relative(c)`, as code for the paper's rule has it,
            otherwise "spectral". Or a `mfac.Rule` of your own.
        normalize: The n of the paper's rule. "rank": m from the first step on, as the paper has
            it; "filled": the gradients seen so far, which makes the first m steps smaller.
        decoupled_weight_decay: Whether weight decay stays out of the window, as AdamW's.
        nesterov: Nesterov's momentum, as `torch.optim.SGD` has it.
        maximize: Whether to ascend.
        centred: Whether the window is centred at the mean of its gradients: a covariance.
        trust_region: κ > 0: steps with η²·uᵀFu above κ are shortened to it; None for no bound.
        grafting: θ in [0, 1]: u is multiplied by (‖g‖/‖u‖)^θ, with g the momentum of gradients that
            u answers. None for the rule's own: 1 for "spectral" and "adam", or 0.
        update_rms: The root mean square that every u is scaled to, 0.2 for Muon's match to Adam;
            None for u as it is.
        orthogonal: Whether the update of each matrix, a convolution's by output channels, is
            replaced by its orthogonal factor with its norm; each costs a few products of its size.
            None for the rule's own: True for "spectral".
        beta2: Of Adam's average of squared gradients, in [0, 1).
        eps: ε of Adam's metric, > 0.
        rounding: Of bfloat16 and float16 weights. "stochastic" keeps the mean of updates below the
            last digit; "compensated" keeps what rounding leaves out, 2 bytes a weight; "nearest".
        window_format: A format of your own, as `format` of `mfac.GradientWindow`, in place of dtype
            and density.
        nonfinite: What a gradient with a NaN, an infinity or an entry that the window cannot hold
            does. "raise": a ValueError that names the parameter; "skip": no step. Neither stores
            anything or moves a weight.
        process_group: Of `torch.distributed`: the window's columns are spread over its processes,
            which hold the same parameters and gradients, as under DistributedDataParallel. Of
            DTensor parameters, as `fully_shard` makes them, each process has its own shard's
            columns, and no group is given. 8 bits and `density` then go by each process's columns.

    Raises:
        TypeError: If a type or dtype is wrong, or an option is unknown.
        ValueError: If a value is out of range.

    Source: M-FAC (Frantar, Kurtic, Alistarh, NeurIPS 2021), section 4 and its Algorithm 2, for the
    window and the paper's rule, whose momentum averages preconditioned gradients. The other rules
    are derived in docs/derivation.md, "Rules of a step". With a `density` below 1 the weights that
    enter the window in a step have no momentum of updates, as error feedback has delayed them
    already (docs/derivation.md, (7)). Coupled weight decay is the paper's: the gradient of the
    regularised loss enters the window.

    Example:
        >>> import torch, mfac
        >>> model = torch.nn.Linear(4, 1)
        >>> opt = mfac.MFAC(model.parameters(), lr=1e-3)
        >>> for _ in range(3):
        ...     opt.zero_grad()
        ...     model(torch.ones(2, 4)).square().mean().backward()
        ...     opt.step()
    """

    elementwise_state = ELEMENTWISE

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor | None = None,
        rank: int | None = None,
        damping: Damping | None = None,
        momentum: float | None = None,
        weight_decay: float = 0.0,
        window_dtype: torch.dtype = torch.float32,
        density: float = 1.0,
        *,
        rule: RuleName | Rule = "auto",
        normalize: Literal["rank", "filled"] = "rank",
        decoupled_weight_decay: bool = False,
        nesterov: bool = False,
        maximize: bool = False,
        centred: bool = False,
        trust_region: float | None = None,
        grafting: float | None = None,
        update_rms: float | None = None,
        orthogonal: bool | None = None,
        beta2: float = 0.999,
        eps: float = 1e-8,
        rounding: Literal["stochastic", "compensated", "nearest"] = "stochastic",
        window_format: Format | None = None,
        nonfinite: Literal["raise", "skip"] = "raise",
        process_group: ProcessGroup | None = None,
    ) -> None:
        self._windows: list[GroupWindow | None] = []
        self._kept: dict[Tensor, Tensor] = {}  # which entries of a parameter have columns
        self.nonfinite = check_choice("nonfinite", nonfinite, ("raise", "skip"))
        self.skipped = False  # whether the last step was none, for a gradient that is not finite
        self._process_group = Group(process_group)
        options = {name: value for name, value in locals().items() if name in OPTIONS}
        super().__init__(params, options)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group, at any time; its window starts empty.

        Args:
            param_group: As for every torch optimizer: `params`, and options of its own.

        Raises:
            TypeError: If a parameter is not real floating-point of 16, 32 or 64 bits, or an option
                is unknown.
            ValueError: If a value is out of range.
        """
        refuse_unknown(param_group, len(self.param_groups))
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            complete(group, len(self.param_groups) - 1)
            self._windows.append(self._window_of(group, None))
        except BaseException:
            self.param_groups.pop()
            raise

    def _window_of(self, group: dict[str, Any], known: GroupWindow | None) -> GroupWindow | None:
        """The window for those parameters of a group that train; None if none does."""
        if not (trained := [p for p in group["params"] if trains(p)]):
            return None
        kept = [self._kept.get(parameter) for parameter in trained]
        if known is None:
            return GroupWindow(group, trained, pieces_for(group["params"], self._process_group), kept)
        return known if known.columns.holds(trained, kept) else known.follow(trained, kept)

    def keep_columns(self, parameter: Tensor, mask: Tensor | None) -> None:
        """Has the window store only the columns that a mask keeps; for `mfac.Masks.attach`.

        Args:
            parameter: Of this optimizer, or not.
            mask: Of its shape, True = kept; None for all. The other weights do not move. All
                columns of a DTensor are stored, and all that are spread over processes.
        """
        whole = self._process_group.found is None and not hasattr(parameter, "to_local")
        if mask is None or not whole:
            self._kept.pop(parameter, None)
        else:
            index = mask.to(parameter.device).reshape(-1).nonzero()[:, 0]
            for mine in self._windows:
                index = index if mine is None else mine.known_index(parameter, index)
            self._kept[parameter] = index

    def held_gradients(self) -> dict[Tensor, Tensor]:
        """The windows' gradients of each parameter, [rows held, size], in the weights' metric."""
        whole = [mine for mine in self._windows if mine is not None and mine.window.format.is_whole]
        return dict(chain.from_iterable(zip(w.columns.parameters, w.gradients(), strict=True) for w in whole))

    @property
    def windows(self) -> list[GradientWindow]:
        """The gradients that F is made of: a window for every group with parameters that train."""
        return [mine.window for mine in self._windows if mine is not None]

    @property
    def window(self) -> GradientWindow:
        """The window of an optimizer with one group.

        Raises:
            RuntimeError: If there are several, or no parameter trains.
        """
        if len(self.windows) != 1:
            raise RuntimeError(f"The optimizer should have one window. Found {len(self.windows)}: see `windows`.")
        return self.windows[0]

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch._disable_dynamo  # as torch's own; torch.compiler.disable would import torch._dynamo with mfac, a second
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Takes one step; a group without any gradient takes none.

        A parameter without a gradient counts as zero in the window and is left as it is.

        Args:
            closure: Computes the loss again and returns it, as for every torch optimizer.

        Returns:
            What the closure returned, or None.

        Raises:
            TypeError: If a gradient is sparse.
            ValueError: If a gradient holds a NaN or infinity and `nonfinite` is "raise"; windows
                and parameters are as they were. If an option of a group has been set to a value out
                of range. If a relative damping comes out beyond float64's range; the parameters are
                as they were.
            torch.linalg.LinAlgError: If λ is too small for float64; the parameters are as they
                were, the windows hold the gradient.
        """
        with torch.enable_grad():
            loss = None if closure is None else closure()
        stepping: list[tuple[int, GroupWindow]] = []
        for i, (group, known) in enumerate(zip(self.param_groups, self._windows, strict=True)):
            with in_group(i):
                if known is None:
                    check_options(group)
                else:
                    known.checked = check_changes(group, known.checked)
        before = [mine if mine is not None and mine.is_in(self.state) else None for mine in self._windows]
        for i, group in enumerate(self.param_groups):
            self._windows[i] = mine = self._window_of(group, before[i])
            with in_group(i):
                if mine is not None and mine.gather():
                    stepping.append((i, mine))
        probed = [mine for _, mine in stepping if mine.is_probe]
        if probed and len(probed) == len(stepping):
            for mine in probed:
                mine.start()
        elif self._accepts(stepping):
            for of_all in (GroupWindow.take, GroupWindow.aim):  # before any weight moves
                for _, mine in stepping:
                    of_all(mine)
            for i, mine in stepping:
                mine.move(i)
        changed = any(mine is not old for mine, old in zip(self._windows, before, strict=True))
        if changed or not all(is_shown(mine, self.state) for _, mine in stepping):
            self._publish()
        return loss

    def _accepts(self, stepping: Sequence[tuple[int, GroupWindow]]) -> bool:
        """Whether the step is taken; where one group alone steps, its window says whether it is."""
        for _, mine in stepping:
            mine.see()
        if self.nonfinite == "raise" and len(stepping) < 2:
            return True
        bad = [(i, mine) for i, mine in stepping if not mine.holds_gradient()]
        any_bad = bool(bad)
        spread = {mine.columns.pieces.among: mine.columns.pieces for _, mine in stepping}
        for pieces in [*spread.values()] * min(2, len(spread)):  # twice: the first hear of the last as well
            any_bad = pieces.any(any_bad)
        self.skipped = any_bad and self.nonfinite == "skip"
        if any_bad and not self.skipped:
            found = " ".join(f"Found {mine.why_refused(f' in group {i}')}" for i, mine in bad)
            found = found or "Found another in another process."
            raise ValueError(f"Parameter `gradient` should be finite. {found}")
        return not self.skipped

    def diagnostics(self) -> dict[str, float]:
        """What the last step was, for any logger; O(m²) a group.

        Returns:
            Of each group with a window, as "name" or, of several, "i/name": "rows" held; "damping"
            λ; "gradient_norm" of the newest; "update_norm" ‖u‖; "slope" gᵀu; "curvature" uᵀFu;
            "gain" of u for the newest; "largest_eigenvalue" of K, by power iteration, and
            "effective_rank" (tr K)²/‖K‖². All in the window's coordinates, Adam's if the rule's.
        """
        found: dict[str, float] = {}
        for i, mine in enumerate(self._windows):
            if mine is not None:
                prefix = f"{i}/" if len(self._windows) > 1 else ""
                found |= {prefix + name: value for name, value in mine.diagnostics().items()}
        return found

    def _publish(self, settled: bool = False) -> None:
        """Writes what the windows hold into `state`, by reference, where tools look for it."""
        for parameter in [p for group in self.param_groups for p in group["params"]]:
            self.state.pop(parameter, None)
        for mine in self._windows:
            if mine is not None and mine.is_allocated:
                mine.settle(settled)
                self.state.update(published(mine))

    def __getstate__(self) -> dict[str, Any]:
        """What copies and pickles hold; `state` is by reference and made again."""
        mine = {name: getattr(self, name) for name in ("_windows", "_kept", "nonfinite", "skipped", "_process_group")}
        return {**super().__getstate__(), **mine, "state": type(self.state)(dict)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Takes up what `__getstate__` gave, or groups alone."""
        super().__setstate__(state)
        if "_windows" in state:
            self._publish()

    def state_dict(self) -> dict[str, Any]:
        """As every torch optimizer's: tensors by reference, and every option in `param_groups`.

        `state` has for each parameter that trains "rows", [m, *shape], and what the rule keeps; the
        first of a group has the m x m parts beside. "momentum" is one group's momentum of updates,
        [d], the weights of its gradients, or None.

        Returns:
            What `load_state_dict` takes, also after `torch.load(weights_only=True)`.
        """
        self._publish(settled=True)
        hooks, self._optimizer_state_dict_post_hooks = self._optimizer_state_dict_post_hooks, OrderedDict()
        try:
            found = super().state_dict()
        finally:
            self._optimizer_state_dict_post_hooks = hooks
        for group in found["param_groups"]:
            group.update({name: packed(value) for name, value in group.items()}, window_format=None)
        found["momentum"] = mine.momentum if len(self._windows) == 1 and (mine := self._windows[0]) else None
        for hook in hooks.values():  # of what is returned, as torch has it
            found = hook(self, found) or found
        return found

    @torch._disable_dynamo  # as torch's own
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up the state of another optimizer of the same parameters, and goes on as the other.

        Options come with the state, as for every torch optimizer. So do states of version 0.1.

        Args:
            state_dict: What `state_dict` returned. Copied.

        Raises:
            KeyError: If an entry is missing.
            TypeError: If an entry is of another type.
            ValueError: If groups, shapes, rank or format differ or an option is out of range. After
                any of these the optimizer is as it was.
        """
        state_dict = state_dict.copy()  # as torch, before hooks see it
        for hook in self._optimizer_load_state_dict_pre_hooks.values():
            state_dict = hook(self, state_dict) or state_dict
        loaded = Loaded(state_dict, self.param_groups, self.defaults)
        windows = [self._window_of_state(loaded, i) for i in range(len(self.param_groups))]
        loaded.restore(self.param_groups)
        for mine, group in zip(windows, self.param_groups, strict=True):
            if mine is not None:
                mine.options = group
                mine.checked = {name: group[name] for name in OPTIONS}
        self._windows = windows
        self._publish()
        for post_hook in self._optimizer_load_state_dict_post_hooks.values():
            post_hook(self)

    def _window_of_state(self, loaded: Loaded, i: int) -> GroupWindow | None:
        """A window with what the state of group i holds."""
        parameters, options = loaded.parameters(i), loaded.groups[i]
        trained = parameters or [p for p in self.param_groups[i]["params"] if trains(p)]
        if not trained:
            return None
        kept = [loaded.kept(parameter, self._kept.get(parameter)) for parameter in trained]
        pieces = pieces_for(self.param_groups[i]["params"], self._process_group)
        mine = GroupWindow(options, trained, pieces, kept)
        if parameters:
            loaded.fill(i, mine)
        return mine
