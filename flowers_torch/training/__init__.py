"""Training: stages, the loop, optimizers and schedules, checkpoints."""
