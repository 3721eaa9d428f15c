"""What a layer-wise run says of itself."""

from __future__ import annotations

from dataclasses import dataclass, field

from mfac.layerwise.finish import FinishResult
from mfac.layerwise.grid import GridValues
from mfac.pruning.report import PruningReport


@dataclass(frozen=True)
class LayerResult:
    """One weight.

    Attributes:
        error: tr(δHδᵀ)/tr(WHWᵀ) over its matrices, without damping: 0 is no change of the layer's
            outputs on the calibration data, 1 is as if the layer were gone. Matrices count by how
            many rows of inputs they saw, as experts do by their tokens.
        damping: The largest λ of its matrices.
        raised: How many times what was asked for that is; 1 where no factorisation failed.
        samples: How many rows of inputs it saw.
        dead: How many of its input columns were always zero.
        seconds: Wall time of its solution; what it shares with others counts where it came first.
        grids: Of each matrix, scales and zeros; empty where nothing was rounded.
    """

    error: float
    damping: float
    raised: float
    samples: int
    dead: int
    seconds: float
    grids: tuple[GridValues, ...] = ()


@dataclass
class LayerwiseReport(PruningReport):
    """The result of `mfac.prune_layerwise`: a `PruningReport`, and what layers say.

    Attributes:
        layers: Name of each weight to its result, in the order in which they were solved.
        seconds_forward: Wall time of running the model on the data.
        finish: What the finish did; None without one. Errors of layers are of before; where weights
            were rounded after it, of the rounding.
        notes: What a user should know, a sentence each: chains that could not be cut into blocks,
            damping that was raised.

    Example:
        >>> import torch, mfac
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 4))
        >>> report = mfac.prune_layerwise(model, [torch.randn(64, 8)])
        >>> report.layers["0.weight"].samples
        64
        >>> all(0 < layer.error < 1 for layer in report.layers.values())
        True
    """

    layers: dict[str, LayerResult] = field(default_factory=dict)
    seconds_forward: float = 0.0
    notes: list[str] = field(default_factory=list)
    finish: FinishResult | None = None

    @property
    def predicted_increase(self) -> float | None:
        """None: errors of layers are no loss."""
        return None

    @property
    def seconds(self) -> float:
        """Wall time of all solutions and passes."""
        return self.seconds_forward + sum(layer.seconds for layer in self.layers.values())

    def __str__(self) -> str:
        kept = sum(int(mask.sum()) for mask in self.masks.values())
        total = sum(mask.numel() for mask in self.masks.values())
        width = max(map(len, [*self.layers, *self.left_dense]), default=0)
        lines = [
            f"sparsity {self.sparsity:.4f}: {kept} of {total} weights kept in {len(self.layers)} layers, "
            f"{self.seconds:.1f} s of which {self.seconds_forward:.1f} s passes, pattern {self.pattern}"
        ]
        for name, layer in self.layers.items():
            share = 1 - float(self.masks[name].double().mean())
            bits = f"  {layer.grids[0].grid.bits} bits" if layer.grids else ""
            lines.append(f"  {name:<{width}}  {share:.4f}  error {layer.error:.4g}{bits}")
        if self.finish is not None:
            after = "kept" if self.finish.helped else "put back"
            lines.append(
                f"  finish: {self.finish.steps} steps, loss held out {self.finish.loss_before:.4f} to "
                f"{self.finish.loss_after:.4f}, {after}, {self.finish.seconds:.0f} s"
            )
        lines += [f"  {name:<{width}}  left dense: it {why}" for name, why in self.left_dense.items()]
        return "\n".join([*lines, *self.notes])
