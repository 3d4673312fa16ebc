"""Models without an adapter of their own: diffusers' pipeline runs unmodified, and its networks share forwards."""
