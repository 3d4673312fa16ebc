"""Encodes pictures into latents and back, in tiles where memory is short."""
