"""The measurements as a program: `python -m bench.layerwise <section>`."""

from __future__ import annotations

import argparse

import bench.layerwise
from bench.layerwise import networks, solvers
from mfac.bench.timing import describe_machine

SECTIONS = ("solvers", "speed", "digits", "budgets", "sentences", "language")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.layerwise",
        description=bench.layerwise.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("sections", nargs="*", metavar="section", help=f"of {', '.join(SECTIONS)}; all without any")
    parser.add_argument("--methods", nargs="+", default=(), help='of solvers, or of language as "50 %% + 4 bits"')
    parser.add_argument("--share", type=int, default=1, help="every so many sequences are evaluated (1)")
    parser.add_argument("--blocks", type=int, default=None, help="of the language model, for a try")
    chosen = parser.parse_args()
    print(describe_machine())
    for section in chosen.sections or SECTIONS:
        print(f"\n{section}")
        if section == "solvers":
            solvers.errors()
        elif section == "speed":
            solvers.speed()
        elif section == "digits":
            networks.digits(chosen.methods)
        elif section == "budgets":
            networks.budgets()
        elif section == "sentences":
            networks.sentences(chosen.methods)
        elif section == "language":
            networks.language(chosen.methods, chosen.share, chosen.blocks)
        else:
            parser.error(f"section should be one of {', '.join(SECTIONS)}. Found {section}.")


if __name__ == "__main__":
    main()
