"""docs/layout.md has a line for every module and every room, as each says of itself."""

from pathlib import Path

from tools.layout import PAGE, head_comment, rooms, summary, updated

ROOT = Path(__file__).parents[2]


def test_the_page_is_current():
    assert PAGE.read_text() == updated(PAGE.read_text()), "run `python -m tools.layout`"


def test_every_module_and_every_room_is_on_the_page():
    page = PAGE.read_text()
    for name in rooms():
        for path in (ROOT / "mfac" / name).glob("*.py"):
            assert path.name == "__init__.py" or f"| `{path.name}` | {summary(path)[:20]}" in page
    for adapter in (ROOT / "csrc").rglob("*_op.cpp"):
        assert f"`{adapter.parent.relative_to(ROOT)}/`" in page


def test_the_first_sentence_is_taken(tmp_path: Path):
    file = tmp_path / "op.cpp"
    file.write_text("// A sum over 1.5 columns, to\n// the end. More.\n\n// Not this.\n#include <a>\n")
    assert head_comment(file) == "A sum over 1.5 columns, to the end"
