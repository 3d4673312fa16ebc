"""Runs unmodified pipelines in threads used as coroutines, and batches their forwards."""
