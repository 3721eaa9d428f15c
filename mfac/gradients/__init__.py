"""Which parameters, in which flat order, and their gradients as rows."""
