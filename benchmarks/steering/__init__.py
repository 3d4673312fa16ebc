"""Benchmarks of steering: how soon a running picture follows, what that costs, and whether it comes out again."""
