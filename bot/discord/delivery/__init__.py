"""Delivery: brings jobs into their messages, within Discord's rate limits, and each final message exactly once."""
