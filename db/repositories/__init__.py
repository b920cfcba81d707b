"""All SQL of the project: one class for each thing remembered, each over one open transaction."""
