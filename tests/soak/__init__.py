"""The soak: a seeded load on a whole stack, seeded faults in it, and an audit of what came of every job."""
