"""Unmodified pipelines, each in a thread that is used as a coroutine, whose forwards are gathered into few."""
