"""Removes jobs and members step by step."""
