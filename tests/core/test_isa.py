"""How the extension was built, and the same results from every instruction set in it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import mfac
from mfac import _C

pytestmark = pytest.mark.cpu_only("instruction sets of the CPU")

TESTS = Path(__file__).parents[1]
STUB = Path(mfac.__file__).with_name("_C.pyi")
BUILT = mfac.build_info()["isas_built"]


def run(isa: str | None, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "MFAC_CPU_ISA"}
    if isa is not None:
        environment["MFAC_CPU_ISA"] = isa
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env=environment, cwd=TESTS.parent, timeout=300
    )


@pytest.fixture(scope="module")
def best() -> str:
    """What is chosen on this machine where nothing is asked for."""
    found = run(None, "-c", "import mfac; print(mfac.build_info()['isa_chosen'])")
    assert found.returncode == 0, found.stderr
    return found.stdout.strip()


def fields_of(name: str) -> set[str]:
    """The keys of a dictionary of the compiled core, as users' type checkers are told."""
    body = STUB.read_text().split(f"class {name}(TypedDict):\n")[1].split("\n\n")[0].split("\n]")[0]
    return set(re.findall(r"^    (\w+):", body, re.MULTILINE))


def test_the_version_is_that_of_the_project():
    project = (TESTS.parent / "pyproject.toml").read_text()
    assert re.search(r'^version = "(.*)"$', project, re.MULTILINE)[1] == mfac.__version__


def test_limits():
    limits = _C.limits()
    assert set(limits) == fields_of("Limits")
    assert all(size > 0 for size in limits.values())
    assert limits["topk_block_columns"] % limits["topk_tile_columns"] == 0
    # A group as wide as the limit is taken, a wider one is refused and told of the limit.
    scores = torch.rand(1, 2 * limits["nm_group"], 1)
    assert torch.ops.mfac.nm_mask(scores, 1, limits["nm_group"]).sum() == 2
    with pytest.raises(RuntimeError, match=rf"in \[1, {limits['nm_group']}\]"):
        torch.ops.mfac.nm_mask(scores, 1, limits["nm_group"] + 1)


def test_build_info():
    info = mfac.build_info()
    assert set(info) == fields_of("BuildInfo")
    assert info["version"] == mfac.__version__
    assert re.match(r"(gcc|clang) \d+", info["compiler"])
    assert info["cplusplus"] >= 202002
    assert info["isas_built"][0] == "portable"
    assert info["isa_chosen"] in info["isas_built"]
    assert re.fullmatch(r"\d+\.\d+", info["oldest_torch"])
    assert (info["cuda_toolkit"] is None) == (info["cuda_architectures"] == [])


@pytest.mark.parametrize("isa", BUILT)
def test_values_of_every_instruction_set(isa: str, best: str):
    """Runs the tests of values, with bounds on rounding, in a process with that instruction set.

    The process fails to import the package if another is chosen than the one asked for.
    """
    if BUILT.index(isa) > BUILT.index(best):
        pytest.skip(f"this machine has {best} only")
    if isa == mfac.build_info()["isa_chosen"]:
        pytest.skip("this very process has it: the tests of values themselves")
    files = [str(path) for path in sorted(TESTS.rglob("test_ops*.py")) if path.parent.name != "pruning"]
    # Odd sizes around a vector and a tile; the largest add time and no other path.
    outcome = run(
        isa, "-m", "pytest", "-p", "no:cacheprovider", *files, "-k", "values and not 2049 and not 1000 and not 1100"
    )
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    assert re.search(r"[1-9]\d* passed", outcome.stdout)


def test_unknown_instruction_set_is_an_import_error_that_names_the_variable(best: str):
    isa = [*BUILT, "sse9"][BUILT.index(best) + 1]  # one that was built but that this machine lacks, where there is one
    found = run(isa, "-c", "import mfac")
    assert found.returncode != 0
    assert (
        "ImportError: Environment variable MFAC_CPU_ISA should name an instruction set that was built" in found.stderr
    )
    assert f"Found '{isa}'." in found.stderr
