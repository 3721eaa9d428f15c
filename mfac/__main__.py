"""`python -m mfac`: the command line."""

import sys

from mfac.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
