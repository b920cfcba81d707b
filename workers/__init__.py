"""Acts: the Celery application, the micro-batch task, webhook delivery and, fenced off, the engine."""
