"""APIs of other programs: each folder is one, and deleting it takes that out (`bot.domain.feature`)."""
