"""Runs of a benchmark that are done and not repeated: of this machine, and those published."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

BENCH = Path(__file__).resolve().parent


def kept_runs(name: str, measured: bool = False) -> dict[str, Any]:
    """The runs of a benchmark that are done.

    Args:
        name: Of the benchmark: "training".
        measured: Whether those in bench/measured/, behind the tables of the documentation, count.

    Returns:
        Runs by key, a dictionary within a dictionary where keys have parts. Runs of this machine
        come before published ones.
    """
    folders = ("measured", "out") if measured else ("out",)
    found: dict[str, Any] = {}
    for path in (BENCH / folder / f"{name}.json" for folder in folders):
        if path.exists():
            _merge(found, json.loads(path.read_text()))
    return found


def keep_runs(name: str, runs: dict[str, Any]) -> None:
    """Writes all runs of a benchmark to bench/out/, by a rename: one cut short leaves it whole."""
    path = BENCH / "out" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    scratch = path.with_suffix(".part")
    scratch.write_text(json.dumps(runs, indent=1))
    scratch.replace(path)


def _merge(runs: dict[str, Any], more: dict[str, Any]) -> None:
    for key, value in more.items():
        if isinstance(value, dict) and isinstance(runs.get(key), dict):
            _merge(runs[key], value)
        else:
            runs[key] = value
