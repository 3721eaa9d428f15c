"""K-FAC of curvlinops-for-pytorch: `KFACLinearOperator` and `KFACInverseLinearOperator`."""

from __future__ import annotations

import torch
from curvlinops import KFACInverseLinearOperator, KFACLinearOperator
from torch import Tensor, nn

from bench.peers.method import DAMPING, PreconditionedSGD, damped


class CurvlinopsKFAC(PreconditionedSGD):
    """Empirical Fisher, with a fresh operator at each update.

    The library's documentation asks for a fresh operator when the weights change.

    Sizes of the data are given, so that it does not traverse them; its determinism check is off.

    Args:
        model: The network.
        exact_damping: Whether (A ⊗ B) + λI is inverted, by eigendecompositions; otherwise A and B
            are damped apart, by the rule of Martens and Grosse, and inverted by Cholesky, the
            cheaper option.
        approximation: "expand", or "reduce", which sums over pixels or tokens first and so is
            cheaper there.
    """

    def __init__(self, model: nn.Module, exact_damping: bool, approximation: str) -> None:
        self.lr = 2e-4 if exact_damping else 1e-3  # exact damping alone makes steps longer
        super().__init__(model)
        self.exact_damping, self.approximation = exact_damping, approximation
        self.loss = nn.CrossEntropyLoss()

    def update(self, images: Tensor, labels: Tensor) -> None:
        """Factors and inverse from this batch."""
        self.operator = KFACLinearOperator(
            self.model,
            self.loss,
            self.supported,
            [(images, labels)],
            check_deterministic=False,
            fisher_type="empirical",
            kfac_approx=self.approximation,
            num_per_example_loss_terms=1,
            num_data=len(labels),
        )
        self.inverse = KFACInverseLinearOperator(
            self.operator,
            damping=DAMPING,
            use_exact_damping=self.exact_damping,
            use_heuristic_damping=not self.exact_damping,
        )

    @torch.no_grad()
    def ihvp(self, v: Tensor) -> Tensor:
        """The inverse times v."""
        return self.inverse @ v

    def precondition(self, gradients: list[Tensor]) -> list[Tensor]:
        """The inverse times a vector in pieces."""
        with torch.enable_grad():  # the factors are computed, by a forward and backward pass, at the first product
            return self.inverse @ gradients

    def dense(self) -> Tensor:
        """(A ⊗ B) + λI of each weight and B + λI of its bias, or the product of damped factors."""
        blocks = []
        for name, positions in self.operator._mapping.items():
            inputs, outputs = self.operator._input_covariances[name], self.operator._gradient_covariances[name]
            if self.exact_damping:
                blocks.append(damped(torch.kron(outputs.double(), inputs.double()), DAMPING))
                biases = [damped(outputs, DAMPING)]
            else:
                damping_in, damping_out = self.inverse._compute_damping(inputs, outputs)
                outer = damped(outputs, float(damping_out))
                blocks.append(torch.kron(outer, damped(inputs, float(damping_in))))
                biases = [outer]
            blocks += biases if "bias" in positions else []
        return torch.block_diag(*blocks)
