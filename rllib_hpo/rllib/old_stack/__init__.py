"""RLlib's old API stack: RolloutWorker and TorchPolicy."""
