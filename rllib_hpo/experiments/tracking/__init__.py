"""What is logged while a run trains: events, TensorBoard, Weights & Biases, Prometheus, the console."""
