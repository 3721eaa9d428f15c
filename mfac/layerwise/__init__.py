"""Layer by layer: Hessians of layer inputs, solvers, quantisation, databases and budgets."""
