"""Searches for settings: what is tried next, what ends early, and a search that can be killed and resumed."""
