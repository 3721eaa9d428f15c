"""The README's tables and its picture say what the tables of docs/benchmarks/ say."""

from pathlib import Path

import pytest

pytest.importorskip("matplotlib", reason="the figure needs matplotlib")

from tools.figures import BENCHMARKS, METHODS, NETWORK, table

README = Path(__file__).parents[2] / "README.md"


def test_the_readme_has_the_accuracies_of_the_results():
    results = {row["sparsity"]: list(row.values()) for row in table(BENCHMARKS / "results.md", "sparsity", "defaults")}
    shown = table(README, "sparsity", "`mfac.prune`")
    assert len(shown) == 3
    for row in shown:
        assert list(row.values()) == results[row["sparsity"]][:4]


def test_the_readme_has_the_steps_of_the_raw_tables():
    measured = {
        METHODS[row["method"]]: row
        for row in table(BENCHMARKS / "raw.md", "network", "method")
        if row["network"] == NETWORK and row["method"] in METHODS
    }
    assert set(measured) == set(METHODS.values())
    shown = table(README, "method", "curvature renewed")
    assert len(shown) == 4
    for method, every, tenth, memory in (row.values() for row in shown):
        ratios = [value for name, value in measured[method].items() if name.startswith("step / SGD step")]
        assert [part.strip() for part in ratios[0].split("/")][:2] == [every, tenth]
        assert memory == measured[method]["memory [MiB]"]


def test_a_table_that_is_not_there_is_an_error():
    with pytest.raises(ValueError, match="Found none"):
        table(README, "no such column")
