"""Training: stages, the loop, optimisers and schedules, checkpoints."""
