"""Every change of a job's state, each in one transaction."""
