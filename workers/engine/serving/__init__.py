"""The engine as its owners see it: in process, offline, or as a child process."""
