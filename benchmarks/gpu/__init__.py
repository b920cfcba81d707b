"""One script for a card at hand: what is right on it, how fast it is, and how far from its floors."""
