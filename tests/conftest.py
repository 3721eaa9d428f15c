import os
from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

# The same examples on every run: a test fails because of a change, or not. MFAC_EXPLORE=1 draws others.
settings.register_profile("reproducible", deadline=None, derandomize=True, print_blob=True)
settings.register_profile("explore", deadline=None, print_blob=True)
settings.load_profile("explore" if os.environ.get("MFAC_EXPLORE") else "reproducible")


@pytest.fixture(autouse=True, scope="session")
def two_threads() -> Iterator[None]:
    """Two threads on any machine, so that what splits work does split it."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)
