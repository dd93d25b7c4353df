"""Experiments: runs, sweeps and jobs, with their configuration, storage and logs."""
