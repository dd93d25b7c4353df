"""Store transitions as rows of declared columns, in memory, on the way to a GPU, and on disk. Pure torch."""
