"""Trains the embedded model, and models from the user's own pictures. Knows nothing of jobs, queues or chat."""
