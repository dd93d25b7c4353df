"""RLlib's new API stack: EnvRunner, RLModule and Learner, and how they exchange transitions and weights."""
