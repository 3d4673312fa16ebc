"""Fixtures of the engine that the benchmarks' tests use."""

from shared.engine_fixtures import embedded

__all__ = ["embedded"]
