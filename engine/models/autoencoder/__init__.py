"""Encodes pictures into latents, and decodes latents in tiles where memory is short."""
