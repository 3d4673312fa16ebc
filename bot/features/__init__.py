"""Features: each folder adds one thing, and deleting it takes that out (`bot.domain.feature`)."""
