"""Emphasis in prompts: `(word:1.2)`."""
