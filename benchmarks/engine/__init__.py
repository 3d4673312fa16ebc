"""Benchmarks against diffusers in one run.

They are not tests: a slow machine misses a goal, it does not fail a build.
"""
