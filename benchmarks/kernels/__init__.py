"""Every op of the kernels alone, beside the time that its bytes take."""
