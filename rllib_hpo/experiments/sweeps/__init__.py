"""Sweeps on Ray Tune: trials, their resources and progress, searches, the W&B workspace."""
