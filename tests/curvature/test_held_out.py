"""A damping chosen on rows left out: the closed form predicts what leaving a row out gives."""

from __future__ import annotations

import copy

import pytest
import torch
from models import batches, cross_entropy, trained_classifier

import mfac
from mfac.curvature.held_out import cautious_choice, left_out_errors


def test_errors_are_those_of_leaving_each_row_out():
    torch.manual_seed(0)
    kept, effect = torch.randn(7, 12, dtype=torch.float64), torch.randn(7, dtype=torch.float64)
    dampings = [1e-3, 0.1, 3.0]
    expected = []
    for damping in dampings:
        misses = []
        for row in range(7):
            others = torch.arange(7) != row
            G, e = kept[others], effect[others]
            delta = G.T @ torch.linalg.solve(G @ G.T + 7 * damping * torch.eye(6, dtype=torch.float64), e)
            misses.append(effect[row] - kept[row] @ delta)
        expected.append(0.5 * torch.stack(misses).square())
    # A 7 x 7 eigendecomposition of a matrix with condition below 1e4.
    torch.testing.assert_close(
        left_out_errors(kept @ kept.T, effect, dampings), torch.stack(expected), rtol=1e-9, atol=0
    )


def test_of_what_cannot_be_told_apart_the_largest_is_taken():
    torch.manual_seed(0)
    best = torch.rand(100, dtype=torch.float64)
    noise = torch.randn(100, dtype=torch.float64)
    worse = [best + 0.5 + 0.01 * noise, best, best, best + 0.2]
    assert cautious_choice(torch.stack(worse[:2])) == 1
    assert cautious_choice(torch.stack([*worse[:2], worse[3]])) == 1
    level = best + 0.1 * (noise - noise.mean())  # another mean by rounding alone
    assert cautious_choice(torch.stack([*worse[:2], level, worse[3]])) == 2


@pytest.mark.parametrize("extra", [{}, {"gradients": "bf16"}, {"compensation": "summed"}])
def test_the_damping_is_a_candidate_and_held_from_then_on(extra):
    dense, data = trained_classifier(hidden=16), batches(24)
    settings = {"sparsity": 0.6, "num_gradients": 24, "stages": 2, "recomputations": 2, **extra}
    report = mfac.prune(copy.deepcopy(dense), cross_entropy, data, damping=mfac.held_out((0.01, 0.3)), **settings)
    (found,) = {step.damping for step in report.steps}
    single = [
        mfac.prune(copy.deepcopy(dense), cross_entropy, data, damping=mfac.relative(c), **settings).steps[0].damping
        for c in (0.01, 0.3)
    ]
    assert any(found == pytest.approx(damping, rel=1e-9) for damping in single)


def test_what_is_no_damping_is_refused():
    with pytest.raises(ValueError, match="at least one candidate"):
        mfac.held_out(())
    with pytest.raises(ValueError, match="scale"):
        mfac.held_out((0.0,))
    with pytest.raises(ValueError, match="damping"):
        mfac.prune(trained_classifier(), cross_entropy, batches(4), damping="automatic")
