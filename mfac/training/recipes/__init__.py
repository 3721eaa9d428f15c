"""Recipes of `mfac.MaskedTraining`, as `mfac.recipes`, and the parts to make others of.

Example:
    >>> import mfac
    >>> recipe = mfac.recipes.GMP(sparsity=0.9, begin=100, end=900, every=100)
    >>> tuple(step for step in range(1, 1001) if recipe.is_due(step))
    (100, 200, 300, 400, 500, 600, 700, 800, 900)
"""

from mfac.training.context import ChangeContext
from mfac.training.drop import BelowThreshold, Drop, ShareOfLive
from mfac.training.grow import Gradient, Grow, Momentum, Random
from mfac.training.rates import Cosine, rewinding
from mfac.training.recipe import Exchange, Recipe
from mfac.training.recipes.acdc import ACDC
from mfac.training.recipes.exchanging import DSR, SET, SNFS, RigL
from mfac.training.recipes.gmp import GMP
from mfac.training.recipes.lottery import LotteryTicket
from mfac.training.recipes.static import SNIP, Static
from mfac.training.share import ByMomentum, BySurvivors, SameLayer, Share
from mfac.training.start import RandomMasks, Start
from mfac.training.when import Every, Slower, When

__all__ = [
    "ACDC",
    "DSR",
    "GMP",
    "SET",
    "SNFS",
    "SNIP",
    "BelowThreshold",
    "ByMomentum",
    "BySurvivors",
    "ChangeContext",
    "Cosine",
    "Drop",
    "Every",
    "Exchange",
    "Gradient",
    "Grow",
    "LotteryTicket",
    "Momentum",
    "Random",
    "RandomMasks",
    "Recipe",
    "RigL",
    "SameLayer",
    "Share",
    "ShareOfLive",
    "Slower",
    "Start",
    "Static",
    "When",
    "rewinding",
]
