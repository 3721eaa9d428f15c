"""CUDA kernels move the bytes that docs/kernels.md says, counted as they execute on the CPU."""

import re
import subprocess
import sys

import pytest
from emulation.build import ROOT

pytestmark = pytest.mark.cpu_only("CUDA kernels executed on the CPU")


@pytest.fixture(scope="module")
def lines() -> list[list[str]]:
    program = [sys.executable, str(ROOT / "tests" / "emulation" / "moved.py")]
    outcome = subprocess.run(program, capture_output=True, text=True, check=True, timeout=600)
    return [line.split("\t") for line in outcome.stdout.splitlines()]


def test_every_twin_is_counted(lines: list[list[str]]):
    adapters = (ROOT / "csrc").rglob("*_cuda_op.cpp")
    twins = {name for path in adapters for name in re.findall(r'm\.impl\("(\w+)"', path.read_text())}
    assert {name.split()[0] for name, _, _ in lines} == twins


def test_twins_move_what_is_stated(lines: list[list[str]]):
    # What the table leaves out is less: parts of a gradient's magnitude, weights of a bound,
    # arguments of kernels.
    tolerance = 0.02
    wrong = [line for line in lines if abs(int(line[1]) / int(line[2]) - 1) > tolerance]
    assert not wrong
