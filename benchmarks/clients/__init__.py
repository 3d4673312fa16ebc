"""Benchmarks of the APIs that other programs' clients speak."""
