"""What the queue itself costs a job, with an engine that answers at once."""
