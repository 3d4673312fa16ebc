"""Suggests prompts for a picture."""
