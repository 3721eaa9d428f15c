"""The static Fisher: damping, its dual, primal and block-diagonal forms, products with its inverse."""
