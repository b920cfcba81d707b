"""What every process of Lorayard does at its edge: word a wrong environment, and write log lines."""
