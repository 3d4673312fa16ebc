"""The rooms of the command line: what `up`, `imagine` and `doctor` do once `bot.__main__` has read their options."""
