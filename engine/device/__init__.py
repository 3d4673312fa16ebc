"""The device: cores, threads, memory."""
