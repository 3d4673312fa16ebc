"""Removes old pictures and files without a row."""
