"""A hook of mkdocs: MathJax goes into the site, so that a page needs no network to be read."""

from __future__ import annotations

import logging
import shutil
import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))  # mkdocs loads this file by its path

from demo.fetch import FetchError, fetch, package

MATHJAX = package("mathjax")


def on_post_build(config: Any) -> None:
    """Copies the one file that pages ask for (`extra_javascript` in mkdocs.yml)."""
    target = Path(config["site_dir"]) / "javascripts" / "tex-svg.js"
    try:
        folder = fetch(MATHJAX)
    except FetchError as error:
        logging.getLogger("mkdocs").info("Formulas stay TeX in this build. %s", error)
        return
    target.parent.mkdir(exist_ok=True)
    shutil.copyfile(folder / "tex-svg.js", target)
