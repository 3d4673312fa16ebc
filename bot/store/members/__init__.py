"""Stored data about a member."""
