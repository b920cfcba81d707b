"""What scheduler and workers share: the Celery application, Flower events, replies."""
