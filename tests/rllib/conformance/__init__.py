"""Test that calls which work with RLlib's own SAC work with every algorithm, or are rejected in a sentence."""
