"""`darkroom rules` and the kill switch, for the bot's operator."""
