"""Prompts longer than a text encoder's window."""
