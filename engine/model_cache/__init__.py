"""The models of a worker: which it offers, which are in memory, and how they get there."""
