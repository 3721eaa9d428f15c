"""The paper's own algorithms, as in `mfac.bench.recurrence`."""

from mfac.bench.recurrence import BatchedRecurrence, DynamicRecurrence, StaticRecurrence

__all__ = ["BatchedRecurrence", "DynamicRecurrence", "StaticRecurrence"]
