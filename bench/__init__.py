"""Measurements that anyone can run again.

`python -m mfac.bench` measures every operator against what the machine can do; it is part of the package. Here are the
measurements that need more than the package: `python -m bench` runs `cost` and `ops`, which take seconds; `python -m
bench.<name>` runs any one of `cost`, `ops`, `accuracy`, `pruning`, `convergence`, `peers` and `abi`.
"""
