"""Timing and machine line, as in `mfac.bench.timing`."""

from mfac.bench.timing import check, describe_machine, medians

__all__ = ["check", "describe_machine", "medians"]
