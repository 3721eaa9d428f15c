"""The emulation that executes CUDA kernels on the CPU finds the faults it is there to find."""

import os
import subprocess
import sys

import pytest
from emulation.build import build_planted, environment

pytestmark = pytest.mark.cpu_only("CUDA kernels executed on the CPU")

FAULTS = (
    "none",
    "race of threads",
    "race of blocks",
    "missing barrier",
    "outside tensor",
    "outside shared",
    "divergent barrier",
    "missing warp barrier",
)
# Runs one kernel on 1000 numbers; prints "right", "wrong", or what the emulation says.
PROGRAM = """
import ctypes, sys
from array import array
n, message = 1000, ctypes.create_string_buffer(1000)
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
ones, x, out = array("d", [1.0] * n), libc.malloc(ctypes.c_size_t(8 * n)), array("d", [0, 0])
ctypes.memmove(x, ones.buffer_info()[0], 8 * n)
failed = ctypes.CDLL(sys.argv[1]).run_faulty(
    int(sys.argv[2]), ctypes.c_void_p(x), ctypes.c_int64(n), ctypes.c_void_p(out.buffer_info()[0]), message)
print(message.value.decode() if failed else "right" if list(out) == [n, n] else "wrong")
"""


def run(sanitizer: str, fault: str, order: str = "forward") -> subprocess.CompletedProcess[str]:
    arguments = [str(build_planted(sanitizer)), str(FAULTS.index(fault))]
    env = {**os.environ, **environment(sanitizer), "MFAC_SIMT_ORDER": order}
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, env=env, timeout=120
    )


@pytest.mark.parametrize("order", ["forward", "reverse", "random:5"])
@pytest.mark.parametrize("sanitizer", ["plain", "address", "thread"])
def test_a_kernel_without_fault_passes(sanitizer: str, order: str):
    outcome = run(sanitizer, "none", order)
    assert (outcome.returncode, outcome.stdout.strip(), outcome.stderr) == (0, "right", "")


@pytest.mark.parametrize("fault", ["race of threads", "race of blocks", "missing barrier", "missing warp barrier"])
def test_races_are_found(fault: str):
    outcome = run("thread", fault)
    assert outcome.returncode == 66
    assert "WARNING: ThreadSanitizer: data race" in outcome.stderr


@pytest.mark.parametrize("fault", ["outside tensor", "outside shared"])
def test_accesses_outside_memory_are_found(fault: str):
    outcome = run("address", fault)
    assert outcome.returncode != 0
    assert "ERROR: AddressSanitizer" in outcome.stderr or "out of bounds" in outcome.stderr  # UBSan, which comes first
    assert "planted.cpp" in outcome.stderr


@pytest.mark.parametrize("sanitizer", ["plain", "address", "thread"])
def test_divergent_barriers_are_found(sanitizer: str):
    outcome = run(sanitizer, "divergent barrier")
    assert "simt: divergent barrier in block (0, 0, 0)" in outcome.stdout
    assert "[thread 0 on: at a barrier, " in outcome.stdout and "[thread 40 on: returned]" in outcome.stdout


def test_shared_memory_that_was_not_written_is_not_a_number():
    assert run("plain", "missing barrier").stdout.strip() == "wrong"


def test_an_unknown_order_is_an_error_that_names_it():
    assert "simt: unknown order sideways" in run("plain", "none", "sideways").stdout
