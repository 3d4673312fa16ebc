"""Init images: where they come from, and what a recipe takes of them."""
