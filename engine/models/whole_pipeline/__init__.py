"""Models without an adapter of their own: diffusers' pipeline runs unmodified, its networks share forwards."""
