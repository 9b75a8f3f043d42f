"""What computes a training step: one file per engine."""
