"""Reports and reviews."""
