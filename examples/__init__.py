"""Short programs, each a whole use of the library: `python -m examples.<name>` from a clone."""
