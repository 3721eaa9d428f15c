"""The pages on adding something of one's own hold what they say: their code runs as it stands."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
PAGES = [*sorted((DOCS / "extending").glob("*.md")), DOCS / "guides" / "choose.md"]
BLOCKS = {page: re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL) for page in PAGES}


@pytest.mark.parametrize("page", [page for page, blocks in BLOCKS.items() if blocks], ids=lambda page: page.stem)
def test_code_of_the_page_runs(page: Path):
    namespace: dict[str, object] = {"__name__": page.stem}
    for block in BLOCKS[page]:
        exec(compile(block, page.name, "exec"), namespace)
