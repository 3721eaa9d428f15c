"""The tables of docs/layout.md, from modules' and rooms' own words: `python -m tools.layout`.

A module is described by the first sentence of its docstring, a room of the compiled core by the
first sentence of the comment at the head of its adapter. The order of the package's rooms is that
of tests/project/test_layers.py.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "layout.md"
SHARED = ("common", "cpu", "cuda")  # folders of csrc/ that hold no op of their own


def main() -> None:
    PAGE.write_text(updated(PAGE.read_text()))


def updated(page: str) -> str:
    """The page with its tables made anew, each between a pair of comments that names it."""
    for name, lines in (("package", package()), ("core", core())):
        begin, end = f"<!-- {name}: made by python -m tools.layout -->", f"<!-- end of {name} -->"
        before, rest = page.split(begin)
        page = "\n".join([before + begin, "", *lines, "", end + rest.split(end)[1]])
    return page


def package() -> Iterator[str]:
    """A table a room: its modules, and what each is about."""
    for room in rooms():
        folder = ROOT / "mfac" / room
        yield from (f"### `mfac/{room}/`", "", summary(folder / "__init__.py"), "", "| file | concept |", "|---|---|")
        for path in sorted(folder.rglob("*.py")):
            name = str(path.relative_to(folder))
            if name != "__init__.py":
                yield row(name.replace("/__init__.py", "/"), summary(path))
        yield ""


def rooms() -> list[str]:
    """The package's folders, from top to bottom: each imports only from those above it."""
    tree = ast.parse((ROOT / "tests" / "project" / "test_layers.py").read_text())
    named = next(
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "ROOMS"
    )
    return [name for name in ast.literal_eval(named) if (ROOT / "mfac" / name).is_dir()]


def core() -> Iterator[str]:
    """A table of the rooms of the compiled core, one of the files that they share."""
    yield from ("| room | concept |", "|---|---|")
    csrc = ROOT / "csrc"
    for folder in sorted(path for path in csrc.glob("*/*") if path.is_dir()):
        yield row(f"csrc/{folder.relative_to(csrc)}/", head_comment(adapter(folder)))
    yield from ("", "| shared file | concept |", "|---|---|")
    for path in sorted(path for name in (".", *SHARED) for path in (csrc / name).iterdir() if path.is_file()):
        yield row(f"csrc/{path.relative_to(csrc)}", head_comment(path))


def adapter(room: Path) -> Path:
    """The file that says what a room is about: its adapter for the CPU."""
    own = room / f"{room.name}_op.cpp"
    return own if own.exists() else sorted(room.glob("*_op.cpp"))[0]


def row(file: str, concept: str) -> str:
    return f"| `{file}` | {concept.replace('|', chr(92) + '|')} |"


def summary(module: Path) -> str:
    """The first sentence of a module's docstring."""
    text = ast.get_docstring(ast.parse(module.read_text()))
    if not text:
        raise ValueError(f"{module} should begin with a docstring. Found none.")
    return first_sentence(text)


def head_comment(file: Path) -> str:
    """The first sentence of the comment that a C++ file begins with."""
    lines = []
    for line in file.read_text().splitlines():
        if not line.startswith("//"):
            break
        lines.append(line.removeprefix("//").strip())
    if not lines:
        raise ValueError(f"{file} should begin with a comment. Found none.")
    return first_sentence("\n".join(lines))


def first_sentence(text: str) -> str:
    """Up to the first full stop that ends a sentence, or the first blank line, without the stop."""
    paragraph = " ".join(text.split("\n\n")[0].split())
    return re.split(r"\.(?:\s|$)", paragraph)[0].rstrip(":")


if __name__ == "__main__":
    main()
