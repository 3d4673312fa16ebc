"""Animations of a ladder, of an interpolation, and of a picture that turns into noise."""
