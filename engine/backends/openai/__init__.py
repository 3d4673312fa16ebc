"""OpenAI's image API, which servers of many kinds have."""

from engine.process.backend_kinds import BackendKind

BACKEND = BackendKind("The image server", "https://…")
