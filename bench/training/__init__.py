"""Whether optimizers train: equal epochs, grids of learning rates of equal size, several seeds."""
