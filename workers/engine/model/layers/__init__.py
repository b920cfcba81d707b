"""The parts that decoder layers are made of."""
