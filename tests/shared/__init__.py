"""What tests of several rooms share: a real broker, database, worker and visitor."""
