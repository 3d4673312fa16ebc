"""The engine: trajectories that share forwards, step by step."""
