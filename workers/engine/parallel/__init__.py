"""One model on several devices: how weights and adapters are cut, and how the ranks agree."""
