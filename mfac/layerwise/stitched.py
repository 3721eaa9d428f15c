"""A model that is stitched again and again: only layers whose level changes are written."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from mfac.layerwise.database import LayerDatabase
from mfac.layerwise.level import LevelKey


class StitchedModel:
    """A model whose layers take levels of a database in turn.

    Args:
        database: Where the levels come from.
        model: Changed in place by `write`.
        layers: Names of the weights that change.
        cache_bytes: Of weights that are kept in the CPU's memory, the latest used; others are read
            from the disk again.

    Raises:
        ValueError: If the model has no such weights.
    """

    def __init__(self, database: LayerDatabase, model: nn.Module, layers: Sequence[str], cache_bytes: int) -> None:
        self._database, self._limit = database, cache_bytes
        self._parameters = database.parameters_of(model, layers)
        self._before = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}
        self._now: dict[str, LevelKey] = {}
        self._cache: OrderedDict[tuple[str, LevelKey], Tensor] = OrderedDict()
        self._held = 0
        self.written = 0  # layers, so far

    @torch.no_grad()
    def write(self, profile: Mapping[str, LevelKey]) -> None:
        """Puts layers at their levels."""
        for layer, level in profile.items():
            if layer in self._now and self._now[layer] == level:
                continue
            self._now.pop(layer, None)  # known again once it is written
            self._parameters[layer].copy_(self._weight(layer, level))
            self._now[layer] = level
            self.written += 1

    @torch.no_grad()
    def restore(self) -> None:
        """Puts back the weights that the model had."""
        for name, parameter in self._parameters.items():
            parameter.copy_(self._before[name])
        self._now.clear()

    def _weight(self, layer: str, level: LevelKey) -> Tensor:
        if (layer, level) in self._cache:
            self._cache.move_to_end((layer, level))
            return self._cache[layer, level]
        weight = self._database.load(layer, level).to(self._parameters[layer].dtype)
        if weight.nbytes > self._limit:
            return weight
        self._cache[layer, level] = weight
        self._held += weight.nbytes
        while self._held > self._limit:
            _, dropped = self._cache.popitem(last=False)
            self._held -= dropped.nbytes
        return weight
