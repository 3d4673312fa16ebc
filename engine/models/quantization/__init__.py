"""Weights in fewer bits: which libraries store them, how many bytes they take, which of them `auto` chooses."""
