"""What policies promise: a simulator that drives their code, rivals beside it, and goals set beforehand."""
