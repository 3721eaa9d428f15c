"""What takes seconds to measure: `python -m bench`. `bench.pruning` and `bench.abi` take minutes."""

from bench import cost, ops

cost.main()
ops.main()
