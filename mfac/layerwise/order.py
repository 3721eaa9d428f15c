"""In which order a model's weights are solved: chains of blocks, and what lies outside them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mfac.layerwise.chain import NamedBlock
from mfac.layerwise.statistics import merged
from mfac.layerwise.views import LayerView


@dataclass
class Segment:
    """Weights that are reached in one way.

    Attributes:
        views: The weights outside of blocks, solved by running the whole model again and again.
        chain: Blocks that are run by themselves; then `views` are those of all blocks.
    """

    views: list[LayerView]
    chain: list[NamedBlock] | None = None


def segments_of(
    views: Sequence[LayerView],
    chains: Sequence[Sequence[NamedBlock]],
    run: Callable[[int], Any],
    batches: Sequence[int] = (0,),
) -> list[Segment]:
    """Segments in the order in which batches reach them.

    A chain between whose blocks the model calls other layers is none: all of these are solved one
    by one.

    Args:
        views: The weights.
        chains: Of blocks.
        run: Runs the whole model on a batch, by its number.
        batches: Those after the first run where earlier ones do not reach every weight.

    Returns:
        Segments that hold every weight once. What no batch reaches comes last.
    """
    order: list[int] = []
    now: list[int] = []
    handles = [
        layer.module.register_forward_pre_hook(lambda *_, number=number: now.append(number))
        for number, view in enumerate(views)
        for layer in view.layers
    ]
    try:
        with torch.no_grad():
            for batch in batches:
                now.clear()
                run(batch)
                order = merged(order, now)
                if len(order) == len(views):
                    break
    finally:
        for handle in handles:
            handle.remove()
    chains = [chain for chain in chains if _is_apart(chain, [views[number] for number in order])]
    reached = list(dict.fromkeys([*order, *range(len(views))]))
    of_chain = {
        number: place
        for place, chain in enumerate(chains)
        for number, view in enumerate(views)
        if any(block.holds(view) for block in chain)
    }
    segments: list[Segment] = []
    begun: dict[int, Segment] = {}
    for number in reached:
        place = of_chain.get(number)
        if place is None:
            if not segments or segments[-1].chain is not None:
                segments.append(Segment([]))
            segments[-1].views.append(views[number])
            continue
        if place not in begun:
            begun[place] = Segment([], list(chains[place]))
            segments.append(begun[place])
        begun[place].views.append(views[number])
    return segments


def _is_apart(chain: Sequence[NamedBlock], called: Sequence[LayerView]) -> bool:
    """Whether nothing else is called between the first and the last block of a chain."""
    inside = [any(block.holds(view) for block in chain) for view in called]
    if not any(inside):
        return True
    first, last = inside.index(True), len(inside) - inside[::-1].index(True)
    return all(inside[first:last])
