"""Measurements that anyone can run again.

`python -m bench` runs `cost` and `ops`, which take seconds; `python -m bench.<name>` runs any one of `cost`, `ops`,
`accuracy`, `pruning` and `abi`.
"""
