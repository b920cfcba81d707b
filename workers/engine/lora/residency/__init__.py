"""Where adapters are: on their way, on the host, in slots."""
