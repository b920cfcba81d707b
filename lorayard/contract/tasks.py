"""Celery task names, which sender, worker and Flower must agree on."""

RUN_MICRO_BATCH = "workers.run_micro_batch"
GENERATE = "lorayard.generate"
"""The name under which every job shows in Flower."""
