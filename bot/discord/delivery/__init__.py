"""Delivery: shows jobs in their messages, within Discord's rate limits, and sends each final message exactly once."""
