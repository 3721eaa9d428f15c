"""The demo: a pretrained network pruned in one call, and a small one trained, beside baselines."""
