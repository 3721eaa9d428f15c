"""Optimizers on a sliding window."""
