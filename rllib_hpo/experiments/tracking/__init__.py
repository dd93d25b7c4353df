"""Log a run while it trains: events, TensorBoard, Weights & Biases, Prometheus, the console."""
