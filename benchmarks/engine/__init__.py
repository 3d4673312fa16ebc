"""Benchmarks that measure the engine beside diffusers, in one run.

They are not tests: a slow machine misses a goal, but fails no build.
"""
