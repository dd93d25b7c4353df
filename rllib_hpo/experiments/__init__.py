"""Experiments: what is launched, and what is logged while it runs."""
