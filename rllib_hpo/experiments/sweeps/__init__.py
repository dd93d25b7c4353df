"""Sweeps on Ray Tune: plans, trials, their resources and progress, the W&B workspace."""
