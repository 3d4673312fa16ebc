"""Settings, log lines and load progress of a process. Imports no torch."""
