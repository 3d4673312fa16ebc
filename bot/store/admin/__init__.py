"""A copy of the database, and whether it answers."""
