"""The databases: SQLite, PostgreSQL, writes that share a commit."""
