"""Patterns of zeros, one concept a file; docs/extending/pattern.md says how to add one."""
