"""`darkroom bench queue` and `darkroom bench scale`: what the house, its store and its broker do under load."""
