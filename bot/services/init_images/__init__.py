"""Init images: where they come from, and their part of a recipe."""
