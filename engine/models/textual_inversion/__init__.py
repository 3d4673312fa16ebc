"""Textual inversions: files, which fit a model, prompts with their words."""
