"""The configurations of runs and sweeps: where each value comes from, and their files."""
