"""Training: the two stages, their batches, losses and adapters."""
