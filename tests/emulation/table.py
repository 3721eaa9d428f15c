"""Prints what became of every CUDA kernel: `python tests/emulation/table.py [--instances]`.

A row for each kernel, or each instance of its template: the architectures it was compiled for,
registers and shared memory of a block as the compiler gives them, spills, and at how many different
sizes it was executed in each mode of `check.py`. Fails if a kernel spills, was not compiled, or was
not executed in some mode.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import mfac
from emulation.build import ROOT
from emulation.check import MODES, launches

ENTRY = re.compile(r"Compiling entry function '(\w+)' for 'sm_(\d+)'")
SPILLS = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"Used (\d+) registers.*?(?:, (\d+) bytes smem)?(?:,|$)")


@dataclass
class Row:
    """What is known of a kernel or of all its instances."""

    instances: int = 0
    architectures: set[str] = field(default_factory=set)
    registers: list[int] = field(default_factory=list)
    shared: list[int] = field(default_factory=list)
    spills: int = 0
    sizes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(MODES, 0))

    def add(self, other: Row) -> None:
        """Joins what is known of another instance."""
        self.instances += other.instances
        self.architectures = self.architectures & other.architectures if self.registers else other.architectures
        self.registers += other.registers
        self.shared += other.shared
        self.spills += other.spills
        for mode in MODES:
            self.sizes[mode] += other.sizes[mode]

    def cells(self, name: str) -> list[str]:
        """The row as text; a cell without anything in it is empty."""
        architectures = " ".join(sorted(self.architectures, key=int))
        return [
            *(name, str(self.instances), architectures, span(self.registers), span(self.shared), str(self.spills)),
            *(str(count) if count else "" for count in self.sizes.values()),
        ]


def span(numbers: list[int]) -> str:
    """The least and the largest number."""
    return "" if not numbers else str(min(numbers)) if len(set(numbers)) == 1 else f"{min(numbers)}-{max(numbers)}"


def plain_name(symbol: str) -> str:
    """A kernel's name and template arguments, as compilers agree on them."""
    name = symbol.removeprefix("void ").replace("(anonymous namespace)::", "").replace("{anonymous}::", "")
    name = re.sub(r"\((int|bool|unsigned int|long)\)", "", name)
    depth = 0
    for i, letter in enumerate(name):
        depth += {"<": 1, ">": -1}.get(letter, 0)
        if letter == "(" and depth == 0:
            name = name[:i]
            break
    return name.replace("mfac::cuda::", "").replace("mfac::", "").replace(" ", "")


def compiled() -> dict[str, Row]:
    """Every instance that nvcc has compiled, from what it said (setup.py keeps it)."""
    rows: dict[str, Row] = defaultdict(lambda: Row(instances=1))
    for log in sorted((ROOT / "build" / "cuda").glob("*.log")):
        symbol, architecture = "", ""
        for line in log.read_text().splitlines():
            if entry := ENTRY.search(line):
                symbol, architecture = entry.groups()
                rows[symbol].architectures.add(architecture)
            elif spills := SPILLS.search(line):
                if symbol:
                    rows[symbol].spills += sum(map(int, spills.groups()))
            elif used := USED.search(line):
                rows[symbol].registers.append(int(used.group(1)))
                shared = re.search(r"(\d+) bytes smem", line)
                rows[symbol].shared.append(int(shared.group(1)) if shared else 0)
                symbol = ""
    names = subprocess.run(["c++filt", *rows], capture_output=True, text=True, check=True).stdout.splitlines()
    return {plain_name(name): row for name, row in zip(names, rows.values(), strict=True)}


def main(per_instance: bool) -> None:
    """Prints the table; exits with what is missing."""
    if mfac.build_info()["cuda_toolkit"] is None:
        print("No table: mfac was built without a CUDA toolkit, so no kernel was compiled for a GPU.")
        return
    rows = compiled()
    for mode in MODES:
        for name, sizes in launches(mode).items():
            rows.setdefault(plain_name(name), Row(instances=1)).sizes[mode] += len(sizes)
    empty = [name for name, row in rows.items() if "" in row.cells(name)]
    spilling = [name for name, row in rows.items() if row.spills]
    if not per_instance:
        kernels: dict[str, Row] = defaultdict(Row)
        for name, row in rows.items():
            kernels[name.split("<")[0]].add(row)
        rows = kernels
    print("| kernel | instances | compiled for | registers | shared bytes | spilled bytes |", " | ".join(MODES), "|")
    print("|---" * (6 + len(MODES)) + "|")
    for name in sorted(rows):
        print("|", " | ".join(rows[name].cells(name)), "|")
    if empty or spilling:
        raise SystemExit(f"Cells are empty for {empty or 'none'}; kernels that spill: {spilling or 'none'}.")


if __name__ == "__main__":
    main("--instances" in sys.argv[1:])
