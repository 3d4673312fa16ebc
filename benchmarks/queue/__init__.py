"""`darkroom bench queue` and `darkroom bench scale`: load measurements of the bot, its store and its broker."""
