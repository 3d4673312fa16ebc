"""Trains the embedded model, and models from the user's own pictures. Independent of jobs, queues and chat."""
