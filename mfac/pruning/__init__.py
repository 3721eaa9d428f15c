"""Optimal Brain Surgeon: saliency, schedule, compensation, the pruner and its report."""
