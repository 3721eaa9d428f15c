"""The static Fisher: damping, dual, primal and block-diagonal forms, products with its inverse."""
