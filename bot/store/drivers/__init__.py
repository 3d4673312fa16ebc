"""Database drivers: SQLite and PostgreSQL, with group commit."""
