"""The CPU's compiled kernels: their C++ sources, the step that builds them, and the library they make."""
