"""The command line: `python -m mfac`, or `mfac` where it is installed."""
