"""A whole Darkroom for the queue benchmarks: store, broker, simulated workers, viewers."""
