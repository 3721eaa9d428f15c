"""Training with masks that change: gradual pruning, sparse training from scratch, CrAM."""
