"""The queue: takes jobs from admission to their end. SQL is the source of truth, the broker is the transport."""
