"""Redis connections, for producers and servers alike."""
