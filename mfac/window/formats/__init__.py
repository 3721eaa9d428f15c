"""Formats of a window's rows; docs/extending/window_format.md says how to add one."""
