"""What works with RLlib's own SAC works with every algorithm here, or is refused in a sentence: one table of calls."""
