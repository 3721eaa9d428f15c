from collections.abc import Iterator

import pytest
from several import Processes


@pytest.fixture(scope="session")
def four() -> Iterator[Processes]:
    processes = Processes()
    yield processes
    processes.end()
