"""Change a model in updates: gradient steps, guarded against NaN, averaged over replicas. Pure torch."""
