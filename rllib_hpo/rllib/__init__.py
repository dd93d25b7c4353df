"""RLlib adapters, the only place that subclasses RLlib: thin, they convert, call and log."""
