"""Which weights are kept: masks, and the patterns they may have."""
