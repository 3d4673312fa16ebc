"""Steering: members change a picture while it develops."""
