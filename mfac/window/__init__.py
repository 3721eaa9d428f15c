"""The dynamic Fisher: a sliding window of gradients, its formats, its inverse capacitance."""
