"""The hosted workflow does what .ci/run does, and both name targets that the Makefile has."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
WORKFLOW = ROOT / ".github" / "workflows" / "ci.yml"


def targets(text: str) -> set[str]:
    return set(re.findall(r"^\s*(?:- run: )?make ([a-z-]+)", text, re.MULTILINE))


def test_the_hosted_workflow_runs_what_ci_runs():
    hosted, own = WORKFLOW.read_text(), (ROOT / ".ci" / "run").read_text()
    assert "- run: .ci/run" in hosted
    assert targets(hosted) == {"wheel"}
    assert targets(own) == {"lint", "docs", "test", "kernels", "wheel"}
    assert re.search(r"cuda: \[0, 1\]", hosted) and "make wheel CUDA=${{ matrix.cuda }}" in hosted


def test_the_targets_are_there():
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert phony is not None
    wanted = targets(WORKFLOW.read_text()) | targets((ROOT / ".ci" / "run").read_text())
    assert wanted | {"demo"} <= set(phony.group(1).split())


def test_the_readme_names_two_commands_first():
    first_block = re.search(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert first_block is not None
    assert re.findall(r"make \w+", first_block.group(1)) == ["make demo", "make test"]
