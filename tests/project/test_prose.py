"""Lines of prose are short enough to read, and files short enough to find one's way in."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
FOLDERS = ("bench", "csrc", "demo", "examples", "mfac", "tests", "tools")
NOT_OURS = {"__pycache__", "build", "out"}  # folders of files that are made and not tracked
PYTHON, CPP = {".py", ".pyi"}, {".h", ".cpp", ".inl", ".cu", ".cuh"}
LONGEST_LINE, LONGEST_FILE = 100, 400


def long_lines(text: str) -> list[str]:
    """Lines of prose that are too long: not code, tables, or lines that a link alone makes long."""
    without_code = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    prose = (line for line in without_code.splitlines() if not line.lstrip().startswith("|"))
    return [line for line in prose if len(re.sub(r"\]\([^)]*\)", "]", line)) > LONGEST_LINE]


def long_lines_of_python(source: str) -> list[str]:
    """Lines of docstrings and comments that are too long, but for a doctest or a URL."""
    lines, numbers = source.split("\n"), set[int]()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            numbers.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT and token.line.lstrip().startswith("#"):
            numbers.add(token.start[0])
    prose = (lines[number - 1] for number in sorted(numbers))
    return [line for line in prose if is_long(line) and not line.lstrip().startswith((">>> ", "... "))]


def long_lines_of_cpp(source: str) -> list[str]:
    """Lines that are a comment, and too long, but for a URL."""
    return [line for line in source.split("\n") if line.lstrip().startswith("//") and is_long(line)]


def is_long(line: str) -> bool:
    return len(re.sub(r"https?://\S+", "", line)) > LONGEST_LINE


def sources(*folders: str) -> Iterator[Path]:
    """Every file of Python and C++ in the folders, without those that a build or a run has left."""
    for path in sorted(path for folder in folders for path in (ROOT / folder).rglob("*")):
        if path.suffix in PYTHON | CPP and not NOT_OURS & set(path.relative_to(ROOT).parts):
            yield path


def test_a_long_line_is_found_and_a_table_is_not_one():
    long = "word " * 25
    assert long_lines(f"{long}\n| {long} |\n```\n{long}\n```\n[link](https://{'a' * 120})") == [long]


def test_a_long_docstring_or_comment_of_python_is_found_and_code_is_not_one():
    long, url = "word " * 25 + "end.", "https://" + "a" * 120
    prose = [f'    """{long}', f"    {long}", f"    # {long}", f'    """{long}"""']
    source = "\n".join([
        "def f(x):", prose[0], "", prose[1], f"    See {url}", f"    >>> f({long!r})", '    """',
        prose[2], f"    # {url}", f"    x = {long!r}  # {long}", prose[3], f'    return """\n# {long}\n"""', "",
    ])  # fmt: skip
    assert long_lines_of_python(source) == prose
    assert not long_lines_of_python(source.replace("word ", ""))


def test_a_long_comment_of_cpp_is_found_and_code_is_not_one():
    long = "word " * 25 + "end."
    prose = [f"// {long}", f"  // {long}"]
    assert long_lines_of_cpp("\n".join([*prose, f"// https://{'a' * 120}", f"int x;  // {long}"])) == prose


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_lines_of_prose_are_short(page: Path):
    assert not long_lines(page.read_text())


def test_lines_of_docstrings_and_comments_are_short():
    paths = [ROOT / "setup.py", *sources(*FOLDERS)]
    assert len(paths) > 300
    long = {
        str(path.relative_to(ROOT)): found
        for path in paths
        if (found := (long_lines_of_python if path.suffix in PYTHON else long_lines_of_cpp)(path.read_text()))
    }
    assert not long


def test_no_source_file_is_too_long():
    sizes = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in sources("csrc", "mfac")}
    assert len(sizes) > 100
    assert not {name: size for name, size in sizes.items() if size > LONGEST_FILE}
