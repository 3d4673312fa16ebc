"""PostgreSQL through asyncpg, on an event loop of its own."""
