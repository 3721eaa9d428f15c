"""The code that users read runs: README blocks in order, examples of every public docstring."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import pytest

import mfac

ROOT = Path(__file__).parents[2]
GUIDES = sorted(
    page
    for page in (ROOT / "docs" / "guides").glob("*.md")
    if page.stem != "gallery"  # shows what examples/ print
)


def run_blocks(page: Path) -> tuple[int, dict[str, object]]:
    """Runs a page's Python blocks in order; returns their number and the names they leave."""
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    namespace: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, page.name, "exec"), namespace)
    return len(blocks), namespace


def test_readme_code_runs():
    count, namespace = run_blocks(ROOT / "README.md")
    assert count >= 2
    assert namespace["report"].sparsity == pytest.approx(0.9, abs=1e-3)


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.stem)
def test_code_of_guides_runs(page: Path):
    count, _ = run_blocks(page)
    assert count >= 1


@pytest.mark.cpu_only("tensors of another device are printed with its name")
@pytest.mark.parametrize(
    "name",
    sorted(
        set(mfac.__all__)
        - {
            "HeldOutDamping",
            "LayerwisePlan",
            "MaskChange",
            "PruningPlan",
            "PruningReport",
            "PruningStep",
            "RelativeDamping",
            "RowRelativeDamping",
            "build_info",
            "lightning_callback",  # of packages that may be missing: tests/training/test_callbacks.py
            "trainer_callback",
        }
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


def test_every_extra_is_on_the_page_about_installing():
    table = (ROOT / "pyproject.toml").read_text().split("[project.optional-dependencies]\n")[1].split("\n\n")[0]
    extras = re.findall(r"^(\w+) = ", table, re.MULTILINE)
    page = (ROOT / "docs" / "install.md").read_text()
    assert "export" in extras and all(f"| `{extra}` |" in page for extra in extras)
