"""Solvers of one layer, one concept a file; docs/extending/layer_solver.md says how to add one."""
