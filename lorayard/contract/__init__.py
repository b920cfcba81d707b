"""What both ends of a wire must agree on: job fields, states, Redis names and versioned messages."""
