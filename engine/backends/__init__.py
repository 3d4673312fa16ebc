"""Servers that draw: each folder is one kind, and deleting it takes that out (`engine.process.backend_kinds`)."""
