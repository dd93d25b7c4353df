"""How an update changes a model: gradient steps, guarded against NaN, averaged over replicas. Pure torch."""
