"""Suggests prompts for a picture, and shortens prompts."""
