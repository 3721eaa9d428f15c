"""The measurements as a program: `python -m bench.pruning <section>`."""

from __future__ import annotations

import argparse
import ast
from typing import Any

import bench.pruning
import mfac
from bench.pruning import channels, digits, kinds, promises, recurrent, sentences
from mfac.bench.timing import describe_machine

SECTIONS = ("digits", "mlp", "sentences", "recurrent", "channels", "kinds", "promises")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.pruning",
        description=bench.pruning.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("sections", nargs="*", metavar="section", help=f"of {', '.join(SECTIONS)}; all without any")
    parser.add_argument("--sparsities", nargs="+", type=_number, default=(), help="or a pattern, as 2:4")
    parts = 'as "default" and magnitude; of promises large, killed, shared, or a part of what a line is called'
    parser.add_argument("--methods", nargs="+", default=(), help=parts)
    parser.add_argument("--networks", type=int, default=None, help="trained from different seeds; of digits, orders")
    parser.add_argument("--set", nargs="+", type=_setting, default=(), metavar="name=value", help="of mfac.prune")
    chosen = parser.parse_args()
    settings = dict(chosen.set)
    print(describe_machine())
    for section in chosen.sections or SECTIONS:
        print(f"\n{section}")
        lines = (chosen.sparsities, chosen.methods)
        if section == "digits":
            digits.cnn(*lines, chosen.networks or 1, settings)
        elif section == "mlp":
            digits.mlp(*lines, chosen.networks or 3, settings)
        elif section == "sentences":
            sentences.table(*lines, settings)
        elif section == "recurrent":
            recurrent.table(*lines, chosen.networks or 1, settings)
        elif section == "channels":
            channels.table(*lines, chosen.networks or 4)
        elif section == "kinds":
            kinds.table()
        elif section == "promises":
            promises.table(chosen.methods)
        else:
            parser.error(f"section should be one of {', '.join(SECTIONS)}. Found {section}.")


def _number(text: str) -> Any:
    return text if ":" in text else float(text)


def _setting(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    if value.startswith("relative("):
        return name, mfac.relative(float(value[len("relative(") : -1]))
    try:
        return name, ast.literal_eval(value)
    except (SyntaxError, ValueError):
        return name, value


if __name__ == "__main__":
    main()
