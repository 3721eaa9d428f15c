"""mfac: products with the inverse of the empirical Fisher in O(dm), for pruning and optimisation.

`ihvp` and `EmpiricalFisher` (static), `GradientWindow` (dynamic), `MFAC` (optimizer),
`collect_gradients` and `prune`.
"""

import torch

try:
    from mfac._C import build_info
except ImportError as error:
    raise ImportError(
        "mfac's compiled core could not be loaded. In a clone, build it with `pip install --no-build-isolation -e .`; "
        f"it needs torch >= 2.10. Found torch {torch.__version__}: {error}"
    ) from error
from mfac.curvature.damping import RelativeDamping, RowRelativeDamping, relative, row_relative
from mfac.curvature.fisher import EmpiricalFisher, ihvp
from mfac.curvature.held_out import HeldOutDamping, held_out
from mfac.gradients.collecting import collect_gradients
from mfac.layerwise.database import LayerDatabase
from mfac.layerwise.finish import FisherFinish
from mfac.layerwise.grid import Grid
from mfac.layerwise.hessian import NotPositiveDefiniteError
from mfac.layerwise.level import Level
from mfac.layerwise.on_meta import parameters_on_meta
from mfac.layerwise.perplexity import evaluate_perplexity
from mfac.layerwise.plan import LayerwisePlan, plan_layerwise
from mfac.layerwise.prune_layerwise import prune_layerwise
from mfac.layerwise.quantized import load_quantized_, save_quantized
from mfac.layerwise.report import LayerwiseReport
from mfac.layerwise.solution import LayerSolution
from mfac.layerwise.solver import solve_layer
from mfac.layerwise.spdy import spdy_search
from mfac.masks.export import export_onnx, load_compact_, plain_state_dict, save_compact, to_semi_structured_
from mfac.masks.masks import Masks
from mfac.masks.patterns import NM, Candidates, Heads, Pattern, Units
from mfac.masks.shrink import shrink
from mfac.optim.grouping import group_parameters
from mfac.optim.mfac import MFAC
from mfac.optim.rules.base import Rule
from mfac.pruning.allocation import Allocation, AllocationContext, Global
from mfac.pruning.batchnorm import reestimate_batchnorm
from mfac.pruning.budget import Budget, allocate
from mfac.pruning.compensation import Compensation
from mfac.pruning.context import StepContext
from mfac.pruning.costs import cost_table
from mfac.pruning.gradual import Pruner
from mfac.pruning.plan import PruningPlan
from mfac.pruning.pruner import plan, prune
from mfac.pruning.report import PruningReport, PruningStep
from mfac.pruning.saliencies.wanda import Wanda
from mfac.pruning.saliency import Saliency
from mfac.pruning.schedule import Schedule
from mfac.pruning.verify import verify
from mfac.training import recipes
from mfac.training.callbacks import lightning_callback, trainer_callback
from mfac.training.change import MaskChange
from mfac.training.cram import CrAM
from mfac.training.masked import MaskedTraining
from mfac.window.window import GradientWindow

__version__ = build_info()["version"]  # of the pyproject.toml that the core was compiled from

__all__ = [
    "MFAC",
    "NM",
    "Allocation",
    "AllocationContext",
    "Budget",
    "Candidates",
    "Compensation",
    "CrAM",
    "EmpiricalFisher",
    "FisherFinish",
    "Global",
    "GradientWindow",
    "Grid",
    "Heads",
    "HeldOutDamping",
    "LayerDatabase",
    "LayerSolution",
    "LayerwisePlan",
    "LayerwiseReport",
    "Level",
    "MaskChange",
    "MaskedTraining",
    "Masks",
    "NotPositiveDefiniteError",
    "Pattern",
    "Pruner",
    "PruningPlan",
    "PruningReport",
    "PruningStep",
    "RelativeDamping",
    "RowRelativeDamping",
    "Rule",
    "Saliency",
    "Schedule",
    "StepContext",
    "Units",
    "Wanda",
    "allocate",
    "build_info",
    "collect_gradients",
    "cost_table",
    "evaluate_perplexity",
    "export_onnx",
    "group_parameters",
    "held_out",
    "ihvp",
    "lightning_callback",
    "load_compact_",
    "load_quantized_",
    "parameters_on_meta",
    "plain_state_dict",
    "plan",
    "plan_layerwise",
    "prune",
    "prune_layerwise",
    "recipes",
    "reestimate_batchnorm",
    "relative",
    "row_relative",
    "save_compact",
    "save_quantized",
    "shrink",
    "solve_layer",
    "spdy_search",
    "to_semi_structured_",
    "trainer_callback",
    "verify",
]
