"""Numeric operations of the engine: tensors in, tensors out, nothing known of requests or adapters' names."""
