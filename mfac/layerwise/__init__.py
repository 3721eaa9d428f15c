"""Language models layer by layer: what is measured of them."""
