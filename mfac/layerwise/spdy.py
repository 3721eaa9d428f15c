"""SPDY: the levels of layers that lose least within a budget, scored by the model's own loss."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mfac.core.checks.choices import check_choice, check_flag
from mfac.core.checks.numbers import check_count, check_number
from mfac.gradients.backward import LossFunction
from mfac.gradients.modes import model_mode
from mfac.layerwise.calling import listed_batches
from mfac.layerwise.database import CostTable, LayerDatabase
from mfac.layerwise.level import LevelKey
from mfac.layerwise.stitched import StitchedModel
from mfac.pruning.budget import allocate

Costs = CostTable | Callable[[str, LevelKey], float] | Literal["flops", "bytes", "bits"]
Profile = dict[str, LevelKey]
Errors = Mapping[str, Mapping[LevelKey, float]]

_SHARE = 0.1  # of the coefficients that are drawn anew at first
_ROUNDING = 1e-12  # relative, of sums of the same costs in another order


@dataclass(frozen=True)
class SearchResult:
    """What `mfac.spdy_search` found.

    Attributes:
        profile: {layer: level}.
        loss: Mean loss of the stitched model over the data.
        cost: Sum of the costs of the levels, no more than the budget.
        evaluations: How many different stitched models were scored.
        masks: {layer: mask} of the profile, True = kept; for `mfac.Masks`.
        coefficients: c of each layer that led to the profile; empty where no c did.
    """

    profile: Profile
    loss: float
    cost: float
    evaluations: int
    masks: dict[str, Tensor] = field(repr=False)
    coefficients: dict[str, float] = field(repr=False, default_factory=dict)


def spdy_search(
    database: LayerDatabase,
    costs: Costs,
    budget: float,
    loss_fn: LossFunction,
    data: Iterable[Any],
    *,
    model: nn.Module,
    errors: Literal["prior", "measured"] = "prior",
    starts: int = 100,
    failures: int = 100,
    seed: int = 0,
    apply: bool = True,
    buckets: int = 10_000,
    cache_bytes: int = 1 << 30,
    progress: Callable[[int, float], None] | None = None,
) -> SearchResult:
    """The level of each layer that makes the model's loss least within a budget of costs.

    With errors e of each layer at each level and a sensitivity c of each layer, `mfac.allocate`
    finds the levels of the least Σ c·e within the budget. With "measured" errors, those of the
    database, c is 1, and that is all. The "prior" supposes that e = (i/(n-1))² for the i-th of n
    levels, and looks for c: of 100 random c in (0, 1) the best, by the loss of the stitched model,
    is changed in a tenth of its coefficients, at least one, as long as one of 100 attempts is
    better; then in one coefficient less, down to one.

    Args:
        database: The levels.
        costs: {layer: {level: cost}} for every layer of the database, and such levels as may be
            chosen; a function of layer and level; or "bytes" or "bits", as `LayerDatabase.costs`
            counts them, or "flops" of the first batch. Nothing is supposed of them but that they
            add up.
        budget: Of the sum of costs, in their unit.
        loss_fn: Called with the model and a batch; returns a scalar.
        data: Batches, all of which score every stitched model; kept in memory.
        model: The model that the database is of; in evaluation mode meanwhile.
        errors: "prior" or "measured".
        starts: How many random c.
        failures: After how many attempts without success fewer coefficients are changed.
        seed: Of the random c.
        apply: Whether the model is left with the best profile; otherwise it is as it was.
        buckets: Of the budget, as for `mfac.allocate`.
        cache_bytes: Of weights held in the CPU's memory, so that they need not be read again.
        progress: Called after each evaluation with their number and the least loss.

    Returns:
        The best profile of all that were scored. The budget holds, but for the rounding of the sum.

    Raises:
        TypeError: If `loss_fn` is no function, or returns no number.
        ValueError: If layers or levels are unknown, even the cheapest levels cost more than the
            budget, or no stitched model has a finite loss. The model is as it was then, as it is if
            a loss raises.

    Cost: two passes over the data at least with the prior; 100 + 100 · (L/10 + 1) and more for L
    layers, but for profiles that were scored before. Each choice of levels is O(layers · levels ·
    buckets). Memory: a copy of the weights, and the cache.

    Source: SPDY (Frantar, Alistarh 2022, 2201.13096), sections 3.1 to 3.3. Numbered differences:
    (1) levels of a layer are ranked by its measured errors, so that i counts levels of any kind;
    among sparsities alone that is their order. (2) What the measured errors choose, and the one
    level that fits for all layers with the least sum of them, are scored as well: the result is no
    worse than either. (3) Where there are no more profiles than random c, as with one or two
    layers, all that fit are scored.

    Example:
        >>> import tempfile, torch, mfac
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
        >>> data = [(torch.randn(32, 8), torch.randn(32, 4)) for _ in range(2)]
        >>> loss_fn = lambda model, batch: torch.nn.functional.mse_loss(model(batch[0]), batch[1])
        >>> levels = [0.0, 0.25, 0.5, 0.75]
        >>> database = mfac.LayerDatabase.build(model, data, levels, folder=tempfile.mkdtemp())
        >>> costs = database.costs("flops", model, torch.zeros(1, 8))
        >>> budget = 0.5 * sum(of_layer[0.0] for of_layer in costs.values())
        >>> found = mfac.spdy_search(database, costs, budget, loss_fn, data, model=model)
        >>> found.cost <= budget
        True
    """
    check_choice("errors", errors, ("prior", "measured"))
    check_flag("apply", apply)
    check_number("budget", budget, least=0)
    for name, count in (("starts", starts), ("failures", failures), ("cache_bytes", cache_bytes)):
        check_count(name, count)
    if not callable(loss_fn):
        raise TypeError(f"Parameter `loss_fn` should be a function. Found {loss_fn!r}.")
    batches = listed_batches(data)
    table = _table(database, costs, model, loss_fn, batches)
    measured = _restricted(database.errors, table)
    stitched = StitchedModel(database, model, list(table), cache_bytes)
    search = _Search(stitched, lambda: _loss(model, loss_fn, batches), table, budget, buckets, progress)
    try:
        with model_mode(model, "eval"), torch.no_grad():
            search.score(allocate(measured, table, budget, buckets))
            if errors == "prior":
                if (uniform := _uniform(measured, table, budget)) is not None:
                    search.score(uniform)
                if math.prod(map(len, table.values())) <= starts:
                    for profile in _fitting(table, budget):
                        search.score(profile)
                else:
                    search.run(_prior(measured), starts, failures, random.Random(seed))
        if search.best is None:
            raise ValueError("Parameter `loss_fn` should return finite losses. Found none for any stitched model.")
        if apply:
            stitched.write(search.best)
    except BaseException:
        stitched.restore()
        raise
    if not apply:
        stitched.restore()
    parameters = database.parameters_of(model, search.best)
    masks = {name: database.mask(name, level).to(parameters[name].device) for name, level in search.best.items()}
    cost = _total(table, search.best)
    return SearchResult(search.best, search.least, cost, search.evaluations, masks, search.coefficients)


class _Search:
    """The best profile so far, and the search for better coefficients."""

    def __init__(
        self,
        stitched: StitchedModel,
        loss: Callable[[], float],
        costs: CostTable,
        budget: float,
        buckets: int,
        progress: Callable[[int, float], None] | None,
    ) -> None:
        self._stitched, self._loss, self._progress = stitched, loss, progress
        self._costs, self._budget, self._buckets = costs, budget, buckets
        self._known: dict[tuple[LevelKey, ...], float] = {}
        self.best: Profile | None = None
        self.least = math.inf
        self.coefficients: dict[str, float] = {}

    @property
    def evaluations(self) -> int:
        """How many profiles were scored."""
        return len(self._known)

    def score(self, profile: Profile, coefficients: Mapping[str, float] | None = None) -> float:
        """The loss of a profile; inf where it is not finite."""
        key = tuple(profile[layer] for layer in self._costs)
        if key in self._known:
            return self._known[key]
        self._stitched.write(profile)
        found = self._loss()
        loss = self._known[key] = found if math.isfinite(found) else math.inf
        if loss < self.least:
            self.best, self.least, self.coefficients = profile, loss, dict(coefficients or {})
        if self._progress is not None:
            self._progress(self.evaluations, self.least)
        return loss

    def run(self, errors: Errors, starts: int, failures: int, generator: random.Random) -> None:
        """Looks for coefficients: random ones first, then changes of the best."""
        layers = list(errors)

        def loss_of(coefficients: dict[str, float]) -> float:
            weighed = {
                layer: {level: coefficients[layer] * error for level, error in of_layer.items()}
                for layer, of_layer in errors.items()
            }
            return self.score(allocate(weighed, self._costs, self._budget, self._buckets), coefficients)

        best = dict.fromkeys(layers, 1.0)
        least = loss_of(best)
        for _ in range(starts):
            drawn = {layer: generator.random() for layer in layers}
            if (loss := loss_of(drawn)) < least:
                best, least = drawn, loss
        for changed in range(max(1, round(_SHARE * len(layers))), 0, -1):
            failed = 0
            while failed < failures:
                drawn = {**best, **{layer: generator.random() for layer in generator.sample(layers, changed)}}
                failed += 1
                if (loss := loss_of(drawn)) < least:
                    best, least, failed = drawn, loss, 0


def _table(
    database: LayerDatabase, costs: Costs, model: nn.Module, loss_fn: LossFunction, batches: list[Any]
) -> dict[str, dict[LevelKey, float]]:
    """Costs of every layer at the levels that may be chosen, in the order of the database."""
    if isinstance(costs, str):
        check_choice("costs", costs, ("flops", "bytes", "bits"))
        if costs == "flops":
            return database.flops(model, lambda: loss_fn(model, batches[0]))
        return database.costs(costs)
    if isinstance(costs, Mapping):
        if set(costs) != set(database.layers):
            raise ValueError(
                f"Parameter `costs` should have the layers of the database, {database.layers}. Found {list(costs)}."
            )
        for layer, of_layer in costs.items():
            if unknown := [level for level in of_layer if level not in database.levels(layer)]:
                raise ValueError(
                    f"Parameter `costs` should have levels of {layer!r} in the database, {database.levels(layer)}. "
                    f"Found {unknown[0]!r}."
                )
            if not of_layer:
                raise ValueError(f"Parameter `costs` should have a level for {layer!r}. Found none.")
        return {
            layer: {level: costs[layer][level] for level in database.levels(layer) if level in costs[layer]}
            for layer in database.layers
        }
    if not callable(costs):
        raise TypeError(f"Parameter `costs` should be a table, a function or a unit. Found {type(costs).__name__}.")
    return {layer: {level: costs(layer, level) for level in database.levels(layer)} for layer in database.layers}


def _restricted(errors: Errors, table: CostTable) -> dict[str, dict[LevelKey, float]]:
    return {layer: {level: errors[layer][level] for level in of_layer} for layer, of_layer in table.items()}


def _prior(measured: Errors) -> dict[str, dict[LevelKey, float]]:
    """(i/(n-1))² of the i-th of n levels, by what they lose; ties in the order given."""
    found = {}
    for layer, of_layer in measured.items():
        ranked = sorted(of_layer, key=lambda level: of_layer[level])
        last = max(1, len(ranked) - 1)
        found[layer] = {level: (ranked.index(level) / last) ** 2 for level in of_layer}
    return found


def _uniform(measured: Errors, table: CostTable, budget: float) -> Profile | None:
    """One level for all layers, the one that fits and loses least; None where none fits."""
    common = [level for level in next(iter(table.values())) if all(level in of_layer for of_layer in table.values())]
    profiles: list[Profile] = [dict.fromkeys(table, level) for level in common]
    fitting = [profile for profile in profiles if _fits(table, profile, budget)]
    return min(fitting, key=lambda profile: _total(measured, profile), default=None)


def _fitting(table: CostTable, budget: float) -> Iterator[Profile]:
    """Every profile within the budget."""
    for levels in itertools.product(*table.values()):
        profile = dict(zip(table, levels, strict=True))
        if _fits(table, profile, budget):
            yield profile


def _fits(table: CostTable, profile: Profile, budget: float) -> bool:
    return _total(table, profile) <= budget * (1 + _ROUNDING)


def _total(table: CostTable, profile: Profile) -> float:
    return sum(table[layer][level] for layer, level in profile.items())


def _loss(model: nn.Module, loss_fn: LossFunction, batches: list[Any]) -> float:
    """The mean loss over the batches."""
    total = 0.0
    for batch in batches:
        loss = loss_fn(model, batch)
        if not isinstance(loss, float | int) and not (isinstance(loss, Tensor) and loss.numel() == 1):
            found = f"shape {list(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise TypeError(f"Parameter `loss_fn` should return a number or a scalar tensor. Found {found}.")
        total += float(loss)
    return total / len(batches)
