"""Trains the embedded model from openly licensed pictures. Knows nothing of jobs, queues or chat."""
