"""Products with frozen weights: plain, quantised, and the head."""
