"""Plain data that every room of the engine shares; imports nothing of the engine but itself."""
