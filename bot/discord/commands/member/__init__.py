"""Slash commands about a member's own jobs, preferences and stored content."""
