"""Data flows one way: every room of the package imports only from the rooms above it."""

import ast
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "mfac"

# From top to bottom. `bench` may use all of them; the package itself, as users import it, stands
# below everything.
ROOMS = [
    "_C",
    "core",
    "gradients",
    "curvature",
    "window",
    "distributed",
    "masks",
    "pruning",
    "optim",
    "layerwise",
    "training",
    "cli",
    "bench",
]


def imported_modules(path: Path) -> set[str]:
    """The package's modules, without its name, that a file imports anywhere, also for types."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] == "mfac"}
        elif isinstance(node, ast.ImportFrom) and node.level:
            raise AssertionError(f"{path.name} has a relative import: imports name their room")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "mfac":
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {name if is_module(name) else str(node.module) for name in names}
    return {name.removeprefix("mfac").removeprefix(".") for name in found}


def is_module(name: str) -> bool:
    path = PACKAGE.parent.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").exists() or name == "mfac._C"


@cache
def graph() -> dict[str, set[str]]:
    """What every module imports, by the name that imports have for it."""
    modules = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").removesuffix(".")
        modules[name] = imported_modules(path)
    return modules


def room(module: str) -> str:
    first = module.split(".")[0]
    return "cli" if first == "__main__" else first  # `python -m mfac` is the command line


def test_imports_among_modules_are_seen():
    imports = graph()
    assert {"core.ops", "curvature.dual", "curvature.damping"} <= imports["curvature.fisher"]
    assert "_C" in imports["core.ops"]


def test_imports_have_no_cycle():
    TopologicalSorter({name: imports for name, imports in graph().items() if room(name) != "bench"}).prepare()


def test_every_module_has_its_room():
    assert {room(name) for name in graph() if name} == set(ROOMS) - {"_C"}


@pytest.mark.parametrize("module", [name for name in graph() if name])
def test_module_imports_only_from_its_room_and_those_above(module: str):
    allowed = {*ROOMS[: ROOMS.index(room(module)) + 1], *([""] if room(module) == "bench" else [])}
    assert {room(name) for name in graph()[module]} <= allowed


def test_optimizer_knows_nothing_of_pruning():
    rooms = {room(name) for name, imports in graph().items() if room(name) == "optim" for name in imports}
    assert "window" in rooms
    assert not rooms & {"pruning", "masks", "gradients"}
