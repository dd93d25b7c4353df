"""One run in one directory: training, resuming, evaluating."""
