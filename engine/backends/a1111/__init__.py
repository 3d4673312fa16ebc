"""AUTOMATIC1111's API, as the web UI and programs like it serve it."""

from engine.process.backend_kinds import BackendKind

BACKEND = BackendKind("AUTOMATIC1111", "http://…")
