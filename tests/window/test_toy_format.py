"""A format that the package does not know: the one that docs/extending/window_format.md builds."""

import copy
import re
from pathlib import Path

import oracle
import pytest
import torch
from device import push, refusal
from models import accuracy, batches, classifier, cross_entropy
from rounding import U, relative_error
from samplers import normal, window

import mfac
from mfac.window.formats.base import Rows

F32, F64 = torch.float32, torch.float64
PAGE = Path(__file__).parents[2] / "docs" / "extending" / "window_format.md"


@pytest.fixture(scope="module")
def short_rows() -> type[Rows]:
    """The class as the page has it; its code runs to the end."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    namespace: dict[str, object] = {}
    exec(compile(code, PAGE.name, "exec"), namespace)
    assert bool(namespace["step"].isfinite().all())
    return namespace["ShortRows"]


def test_it_is_known_to_no_file_of_the_package():
    assert not any("ShortRows" in path.read_text() for path in Path(mfac.__file__).parent.rglob("*.py"))


@pytest.mark.parametrize(("rank", "dim"), [(5, 300), (9, 6)])  # then the primal form
def test_products_are_those_of_the_rows_as_stored(short_rows, rank: int, dim: int):
    W = mfac.GradientWindow(rank, dim, 1e-2, format=short_rows)
    assert W.nbytes == 4 * rank * dim + 16 * rank**2
    G = window(rank + 3, dim, dtype=F32)
    for g in G:
        W.push(g)
    stored, rounding = W.rows[W.newest], relative_error(W.rows[W.newest], G[-1].double())
    assert 0 < rounding <= 2.0**-13  # half a unit of the twelfth bit
    kappa = oracle.condition(W.rows, W.damping)
    bound = 2 * U[F32] + (rank + dim) * U[F64] * kappa**1.5  # as in test_window.py
    assert relative_error(W.precondition(), oracle.ihvp(W.rows, stored, 1e-2)) <= bound
    v = normal(3, dim, seed=1, dtype=F32)
    for vector, found in zip(v, W.ihvp(v), strict=True):
        assert relative_error(found, oracle.ihvp(W.rows, vector, 1e-2)) <= 2 * U[F32] + (rank + dim) * U[F64] * kappa


def test_it_is_saved_removed_from_and_refuses_like_any_other(short_rows):
    W = mfac.GradientWindow(4, 30, 1e-2, format=short_rows)
    for g in normal(6, 30, dtype=F32):
        W.push(g)
    W.remove(1)
    state = copy.deepcopy(W.state_dict())
    with pytest.raises(ValueError, match=refusal("should be finite. Found a NaN or infinity; the window is unchanged")):
        push(W, torch.full((30,), float("inf")))
    other = mfac.GradientWindow(4, 30, 1e-2, format=short_rows)
    other.load_state_dict(state)
    if W.device.type == "cpu":  # elsewhere it is a row of zeros
        assert torch.equal(W.rows, other.rows)
    g = normal(30, seed=9, dtype=F32)
    for one in (W, other):
        one.load_state_dict(state)
        one.push(g)
    assert torch.equal(W.precondition(), other.precondition())
    assert W.carried_columns() is None


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_optimizer_takes_it(short_rows, momentum: float):
    accuracies = []
    for chosen in ({"window_format": short_rows}, {}):
        model = classifier()
        opt = mfac.MFAC(model.parameters(), lr=1e-2, rank=32, damping=1e-3, momentum=momentum, **chosen)
        for batch in batches(200, size=32, seed=2):
            opt.zero_grad()
            cross_entropy(model, batch).backward()
            opt.step()
        accuracies.append(accuracy(model, batches(20, size=64, seed=9)))
    assert accuracies[0] > 0.85 and abs(accuracies[0] - accuracies[1]) < 0.05  # a deviation is 0.01


def test_a_format_and_a_dtype_exclude_each_other(short_rows):
    for wrong in ({"dtype": torch.bfloat16}, {"density": 0.1}):
        with pytest.raises(ValueError, match=r"Parameter `format` should be given alone\. Found"):
            mfac.GradientWindow(2, 3, format=short_rows, **wrong)
