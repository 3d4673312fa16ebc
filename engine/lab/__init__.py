"""Experiments with the parts of picture generation: sums of words, walks between prompts, the autoencoder, noise.

For people who want to see what a latent space is. Reuses the engine's models, plans and noise; adds no sampler of its
own. One file, one idea; `__main__` is the command line, `lesson` runs everything and writes a page about it.
"""
