"""What runs in the next step: batching, and the step's description."""
