"""What an adapter's files say, checked against the base."""
