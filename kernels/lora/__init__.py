"""Adapters upon a packed module's output: which rows, which weights, and the kernels that add them."""
