"""Saliencies, one concept a file; docs/extending/saliency.md says how to add one."""
