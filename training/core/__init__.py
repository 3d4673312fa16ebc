"""A training run: optimizer, checkpoints, random numbers, memory estimate."""
