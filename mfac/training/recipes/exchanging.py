"""Sparse training from scratch: RigL, SET, SNFS and DSR, each an `Exchange`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from mfac.pruning.saliency import Saliency, SaliencyName
from mfac.training.drop import BelowThreshold, ShareOfLive
from mfac.training.grow import Gradient, Momentum, Random
from mfac.training.rates import Cosine
from mfac.training.recipe import Exchange
from mfac.training.share import ByMomentum, BySurvivors, SameLayer
from mfac.training.start import RandomMasks
from mfac.training.when import Every, Slower

StartName = Literal["erk", "uniform"] | Mapping[str, float]
"""How the live weights are spread over the parameters at the start."""


class RigL(Exchange):
    """RigL: the smallest weights go, those with the largest gradient come, in the same layer.

    Args:
        sparsity: Share of zeros.
        end: The last step that may change masks, the paper's three quarters of the training; None
            for changes without end, whose rate does not fall.
        every: Steps from one change to the next.
        begin: The first step that changes masks; None for `every`.
        rate: α, the share of a layer's live weights that is exchanged at first; it falls to 0 on
            half a cosine, α/2 · (1 + cos(πt/end)).
        saliency: What a weight is worth, as of `mfac.recipes.GMP`.
        allocation: Of the first, random masks: "erk", "uniform" or a sparsity by name or pattern.

    Raises:
        TypeError: If a type is wrong.
        ValueError: If a number is out of range, or the end comes before the beginning.

    Source: Evci et al., "Rigging the Lottery" (1911.11134), Algorithm 1. What is dropped does not
    come back in the same change, and the step of the optimizer is taken in steps that change masks
    too.

    Example:
        >>> import torch, mfac
        >>> model = torch.nn.Linear(10, 10)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        >>> training = mfac.MaskedTraining(model, optimizer, mfac.recipes.RigL(0.8, end=15, every=5))
        >>> for _ in range(20):
        ...     optimizer.zero_grad()
        ...     model(torch.randn(4, 10)).square().mean().backward()
        ...     optimizer.step()
        >>> tuple((change.step, change.dropped, change.grown) for change in training.changes)
        ((0, 80, 0), (5, 4, 4), (10, 2, 2), (15, 0, 0))
    """

    def __init__(
        self,
        sparsity: float,
        *,
        end: int | None = None,
        every: int = 100,
        begin: int | None = None,
        rate: float = 0.3,
        saliency: SaliencyName | Saliency = "magnitude",
        allocation: StartName = "erk",
    ) -> None:
        drop = ShareOfLive(Cosine(rate, 0.0, end), saliency)
        super().__init__(Every(every, end, begin), drop, Gradient(), SameLayer(), RandomMasks(sparsity, allocation))


class SET(Exchange):
    """SET: a fixed share of the smallest weights goes, random ones come, in the same layer.

    Args:
        sparsity: Share of zeros.
        end: The last step that may change masks; None for no end.
        every: Steps from one change to the next; the paper's is an epoch.
        begin: The first step that changes masks; None for `every`.
        rate: ζ, the share of a layer's live weights that is exchanged.
        saliency: What a weight is worth, as of `mfac.recipes.GMP`.
        allocation: As of `mfac.recipes.RigL`.

    Raises:
        TypeError: If a type is wrong.
        ValueError: If a number is out of range, or the end comes before the beginning.

    Source: Mocanu et al. 2018 (1707.04780), Algorithm 1. The smallest weights go by their size, not
    apart for each sign.
    """

    def __init__(
        self,
        sparsity: float,
        *,
        end: int | None = None,
        every: int = 100,
        begin: int | None = None,
        rate: float = 0.3,
        saliency: SaliencyName | Saliency = "magnitude",
        allocation: StartName = "erk",
    ) -> None:
        drop = ShareOfLive(Cosine(rate), saliency)
        super().__init__(Every(every, end, begin), drop, Random(), SameLayer(), RandomMasks(sparsity, allocation))


class SNFS(Exchange):
    """SNFS: the smallest weights go, those with the largest average gradient come, in any layer.

    Layers share what comes back by the mean size of the average gradients of their live weights.
    The average is of all weights, dropped ones too, and takes a number a weight.

    Args:
        sparsity: Share of zeros.
        end: The last step that may change masks; the rate reaches its last value there. None for no
            end, and the first rate throughout.
        every: Steps from one change to the next; the paper's is an epoch.
        begin: The first step that changes masks; None for `every`.
        rate: Share of a layer's live weights that is exchanged at first.
        last_rate: In the end; between them lies half a cosine.
        decay: β of the average gradient.
        saliency: What a weight is worth, as of `mfac.recipes.GMP`.
        allocation: As of `mfac.recipes.RigL`.

    Raises:
        TypeError: If a type is wrong.
        ValueError: If a number is out of range, or the end comes before the beginning.

    Source: Dettmers, Zettlemoyer, "Sparse Networks from Scratch" (1907.04840), section 3. The
    average is the recipe's own, so that any optimizer will do.
    """

    def __init__(
        self,
        sparsity: float,
        *,
        end: int | None = None,
        every: int = 100,
        begin: int | None = None,
        rate: float = 0.5,
        last_rate: float = 0.005,
        decay: float = 0.9,
        saliency: SaliencyName | Saliency = "magnitude",
        allocation: StartName = "uniform",
    ) -> None:
        drop = ShareOfLive(Cosine(rate, min(rate, last_rate), end), saliency)
        start = RandomMasks(sparsity, allocation)
        super().__init__(Every(every, end, begin), drop, Momentum(decay), ByMomentum(), start)


class DSR(Exchange):
    """DSR: what is below one threshold goes; random zeros come, most where most weights survive.

    The threshold is doubled or halved so that about `share` of the live weights go at a time.

    Args:
        sparsity: Share of zeros.
        end: The last step that may change masks.
        periods: Steps from one change to the next, each for an equal part of the way to the end.
        share: About how many of all live weights go at a time.
        threshold: At first.
        saliency: What a weight is worth, as of `mfac.recipes.GMP`; the threshold is in its units.
        allocation: As of `mfac.recipes.RigL`.

    Raises:
        TypeError: If a type is wrong.
        ValueError: If a number is out of range, or no change comes before the end.

    Source: Mostafa, Wang, "Dynamic Sparse Reparameterization" (1902.05967), Algorithm 1.
    """

    def __init__(
        self,
        sparsity: float,
        *,
        end: int,
        periods: Sequence[int] = (100, 200, 400, 800),
        share: float = 0.1,
        threshold: float = 1e-3,
        saliency: SaliencyName | Saliency = "magnitude",
        allocation: StartName = "uniform",
    ) -> None:
        drop = BelowThreshold(share, threshold, saliency=saliency)
        super().__init__(Slower(periods, end), drop, Random(), BySurvivors(), RandomMasks(sparsity, allocation))
