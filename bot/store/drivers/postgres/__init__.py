"""PostgreSQL through psycopg, on the store's own threads."""
