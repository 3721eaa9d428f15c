"""The code that users read runs: README blocks in order, and the examples of every public docstring."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import pytest

import mfac

ROOT = Path(__file__).parents[2]


def test_readme_code_runs():
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(blocks) >= 4
    namespace: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), namespace)
    assert namespace["report"].sparsity == pytest.approx(0.9, abs=1e-3)


@pytest.mark.cpu_only("tensors of another device are printed with its name")
@pytest.mark.parametrize(
    "name",
    sorted(
        set(mfac.__all__)
        - {"HeldOutDamping", "PruningPlan", "PruningReport", "PruningStep", "RelativeDamping", "build_info"}
    ),
)
def test_docstring_examples_run(name):
    value = getattr(mfac, name)
    if page := re.search(r"docs/extending/\w+\.md", value.__doc__):  # whose code runs as well (test_extending.py)
        assert (ROOT / page.group()).exists()
        return
    tests = doctest.DocTestFinder(recurse=False).find(value, name)
    runner = doctest.DocTestRunner()
    results = [runner.run(test) for test in tests]
    assert sum(result.attempted for result in results) > 0, f"{name} has no example"
    assert sum(result.failed for result in results) == 0


@pytest.mark.parametrize("name", mfac.__all__)
def test_everything_public_is_documented(name):
    assert getattr(mfac, name).__doc__
    assert name in (ROOT / "docs" / "api.md").read_text()
