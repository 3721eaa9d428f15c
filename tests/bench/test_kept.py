"""Runs of benchmarks that are kept: merged, written whole, read back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import kept


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(kept, "BENCH", tmp_path)
    (tmp_path / "measured").mkdir()
    (tmp_path / "measured" / "some.json").write_text(json.dumps({"task": {"a": {"0": 1.0}, "b": {"0": 2.0}}}))
    return tmp_path


def test_runs_of_this_machine_come_before_published_ones(folder: Path):
    assert kept.kept_runs("some") == {}
    kept.keep_runs("some", {"task": {"a": {"0": 5.0, "1": 6.0}}, "other": {"c": {}}})
    assert kept.kept_runs("some") == {"task": {"a": {"0": 5.0, "1": 6.0}}, "other": {"c": {}}}
    both = {"task": {"a": {"0": 5.0, "1": 6.0}, "b": {"0": 2.0}}, "other": {"c": {}}}
    assert kept.kept_runs("some", measured=True) == both
    assert [path.name for path in (folder / "out").iterdir()] == ["some.json"]
