"""Measure speed: `python -m benchmarks.train_speed` and `python -m benchmarks.update_speed`."""
