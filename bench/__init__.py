"""Measurements that anyone can run again.

`python -m mfac.bench` measures every operator against what the machine can do; it is part of the
package. Here are the measurements that need more than the package: `python -m bench.<name>` runs
one of `accuracy`, `pruning`, `convergence`, `peers` and `abi`; `gpu` and `gpu_check` are for a
machine with a GPU.
"""
