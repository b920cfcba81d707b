"""Gates of MLPs."""
