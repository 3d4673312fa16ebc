"""Slash commands that make pictures, or suggest prompts for them."""
