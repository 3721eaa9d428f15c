"""CUDA kernels executed on the CPU."""
