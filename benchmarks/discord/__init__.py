"""Benchmarks of the bot against a simulated Discord on this machine."""
