"""Rules: which combination of the window's gradients a step moves along, one concept a file."""
