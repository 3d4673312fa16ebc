"""Webhooks and their outbox in SQL."""
