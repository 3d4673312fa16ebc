"""Reads the workers' results from the broker and stores them."""
