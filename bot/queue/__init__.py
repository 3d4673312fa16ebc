"""The queue's keepers: from a job written down to one that has ended. SQL is the truth, the broker carries it."""
