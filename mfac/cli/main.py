"""The program: its commands, and errors as one line."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from mfac.cli.arguments import parser
from mfac.cli.prune import prune_command
from mfac.cli.results import report_command, verify_command


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        arguments: Of the program; None for the arguments of the process.

    Returns:
        0; 1 after an error, which is a line on the standard error; 130 where it was interrupted.
        Wrong usage ends the process with 2, as argparse does.
    """
    given = parser(prune_command, verify_command, report_command).parse_args(arguments)
    try:
        given.command(given)
    except KeyboardInterrupt:
        print("mfac: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if given.traceback:
            raise
        print(f"mfac: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0
