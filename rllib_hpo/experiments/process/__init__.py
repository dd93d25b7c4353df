"""The process that runs a command: its signals, its standard streams, and its lock on a run directory."""
