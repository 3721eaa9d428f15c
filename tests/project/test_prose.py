"""Lines of prose are short enough to read, and files short enough to find one's way in."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
LONGEST_LINE, LONGEST_FILE = 100, 400


def long_lines(text: str) -> list[str]:
    """Lines of prose that are too long: not code, tables, or lines that a link alone makes long."""
    without_code = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    prose = (line for line in without_code.splitlines() if not line.lstrip().startswith("|"))
    return [line for line in prose if len(re.sub(r"\]\([^)]*\)", "]", line)) > LONGEST_LINE]


def test_a_long_line_is_found_and_a_table_is_not_one():
    long = "word " * 25
    assert long_lines(f"{long}\n| {long} |\n```\n{long}\n```\n[link](https://{'a' * 120})") == [long]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_lines_of_prose_are_short(page: Path):
    assert not long_lines(page.read_text())


def test_no_source_file_is_too_long():
    sources = [path for folder in ("csrc", "mfac") for path in (ROOT / folder).rglob("*")]
    sizes = {
        str(path.relative_to(ROOT)): len(path.read_text().splitlines())
        for path in sources
        if path.suffix in {".py", ".pyi", ".h", ".inl", ".cpp", ".cu", ".cuh"}
    }
    assert len(sizes) > 100
    assert not {name: size for name, size in sizes.items() if size > LONGEST_FILE}
