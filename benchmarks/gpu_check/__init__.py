"""Check all of this package that runs on a GPU, within six minutes; see `__main__`."""
