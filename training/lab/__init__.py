"""Experiments that show how image generation works: word sums, interpolation, the autoencoder, the forward process.

They use the engine's models, plans and noise, and add no sampler. `__main__` is the command line; `lesson` runs all
experiments and writes a page about them.
"""
