"""Removes what is no longer kept: old pictures, files without a row."""
