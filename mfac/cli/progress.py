"""Progress of a run on the terminal: a bar with tqdm installed, a line a step without it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from mfac.pruning.report import PruningStep


@contextmanager
def shown_progress() -> Generator[Callable[[PruningStep], None]]:
    """Shows steps on the standard error.

    Yields:
        What `mfac.prune` calls after each step.
    """
    if find_spec("tqdm") is None:
        yield _line
        return
    from tqdm import tqdm

    bar: Any = tqdm(unit="step", file=sys.stderr)

    def advance(step: PruningStep) -> None:
        bar.total = step.total_steps
        bar.set_postfix(stage=step.stage, sparsity=f"{step.sparsity:.4f}", refresh=False)
        bar.update(step.step - bar.n)

    try:
        yield advance
    finally:
        bar.close()


def _line(step: PruningStep) -> None:
    print(
        f"step {step.step} of {step.total_steps}, stage {step.stage}: sparsity {step.sparsity:.4f}, "
        f"{step.seconds:.1f} s",
        file=sys.stderr,
        flush=True,
    )
