"""Keyframes of a ladder as pictures."""
