"""Data flows one way: every module of the package imports only from what stands to its left."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "mfac"

# From left to right.
ORDER = [
    *("_C", "devices", "checks", "damping", "cuda_ops", "ops"),
    *(
        "whitening",
        "dual",
        "primal",
        "block_diagonal",
        "fisher",
        "deferred",
        "capacitance",
        "descent",
        "rows",
        "ring",
        "push",
        "sliding",
        "window",
    ),
    *("parameters", "batches", "gradients", "batchnorm"),
    *("saliency", "masks", "patterns", "schedule", "compensation", "report", "pruner"),
    *("momentum", "optimizer"),
]


def imported_modules(path: Path) -> set[str]:
    """Names of the package's modules that a file imports anywhere in it, for types only included."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("mfac.")}
        elif isinstance(node, ast.ImportFrom) and node.level:
            found |= {node.module.split(".")[0]} if node.module else {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "mfac":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mfac."):
            found.add(node.module.split(".")[1])
    return found


def graph() -> dict[str, set[str]]:
    return {path.stem: imported_modules(path) for path in sorted(PACKAGE.glob("*.py")) if path.stem != "__init__"}


def test_imports_among_modules_are_seen():
    imports = graph()
    assert {"ops", "dual", "primal", "block_diagonal", "checks", "damping"} <= imports["fisher"]
    assert "_C" in imports["ops"]


def test_imports_have_no_cycle():
    TopologicalSorter(graph()).prepare()


def test_every_module_has_its_place():
    assert set(graph()) <= set(ORDER)


@pytest.mark.parametrize("module", [name for name in ORDER if name in graph()])
def test_module_imports_only_from_its_left(module: str):
    left = ORDER[: ORDER.index(module)]
    assert graph()[module] <= set(left)


def test_optimizer_knows_nothing_of_pruning():
    imports = graph()["optimizer"]
    assert "window" in imports
    assert imports <= {*ORDER[: ORDER.index("saliency")], "momentum"}
