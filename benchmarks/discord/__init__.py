"""The bot against a Discord on this machine."""
