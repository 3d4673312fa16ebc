"""The checks before a job is admitted: word filter, rules, quota."""
