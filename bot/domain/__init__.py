"""Values that several packages share: job views, events, errors, texts. Pure."""
