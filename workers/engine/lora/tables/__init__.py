"""What the kernels read of the resident adapters."""
