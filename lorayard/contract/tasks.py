"""Celery task names, which sender, worker and Flower must agree on."""

RUN_MICRO_BATCH = "workers.run_micro_batch"
PING = "workers.ping"
"""Its argument is a UUID, which the worker gives back beside its next event."""
GENERATE = "lorayard.generate"
"""The name under which every job shows in Flower."""
