"""Copies the database, and checks that it answers."""
