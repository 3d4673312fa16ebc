"""Files of a model: where they are, what they contain, their fingerprint."""
