"""Measurements that a change of speed is judged by; run one with `python -m benchmarks.NAME --help`."""
