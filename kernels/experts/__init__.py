"""A batch rearranged for layers with experts."""
