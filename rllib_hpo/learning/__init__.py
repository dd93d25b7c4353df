"""Learning from a replay, for any method: updates counted, in bulk, as CUDA graphs. Pure torch."""
