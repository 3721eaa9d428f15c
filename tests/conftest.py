import os
from collections.abc import Iterator

import pytest
import torch
from device import DEVICE, use_device
from emulation.operators import use_cuda_twins
from hypothesis import settings
from several import Processes, two_processes

# The same examples on every run: a test fails because of a change, or not. MFAC_EXPLORE=1 draws
# others.
settings.register_profile("reproducible", deadline=None, derandomize=True, print_blob=True)
settings.register_profile("explore", deadline=None, print_blob=True)
settings.load_profile("explore" if os.environ.get("MFAC_EXPLORE") else "reproducible")

use_device()  # here, because parameters of tests are tensors too


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """On another device than the CPU, skips what is marked as `cpu_only`."""
    for item in items:
        if DEVICE.type != "cpu" and (mark := item.get_closest_marker("cpu_only")):
            item.add_marker(pytest.mark.skip(reason=mark.args[0]))


@pytest.fixture(autouse=True, scope="session")
def two_threads() -> Iterator[None]:
    """Two threads on any machine, so that what splits work does split it.

    One where CUDA kernels are executed on the CPU: ThreadSanitizer, which may watch, does not know
    torch's threads.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1 if "MFAC_TEST_KERNELS" in os.environ else 2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True, scope="session")
def kernels() -> Iterator[None]:
    """The CPU's kernels, or the CUDA twins in the build that MFAC_TEST_KERNELS names."""
    wanted = os.environ.get("MFAC_TEST_KERNELS")
    if wanted is None:
        yield
    else:
        with use_cuda_twins(wanted):
            yield


@pytest.fixture(scope="session")
def two() -> Iterator[Processes]:
    """Two processes that speak gloo, started by the first test that asks for them."""
    with two_processes() as processes:
        yield processes
