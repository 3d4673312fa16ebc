"""Benchmarks: what we claim, measured side by side in one run. Not tests: a slow machine fails a goal, not a build."""
