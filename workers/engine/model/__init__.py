"""The decoder: config, checkpoint files, and the forward pass they describe."""
