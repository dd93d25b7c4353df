"""The replay: rows of declared columns, in memory, on their way to a GPU, and on disk. Pure torch."""
