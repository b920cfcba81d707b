"""The systems that are measured, each a child process of its own that speaks `protocol`."""
