"""Parties: members steer one picture together."""
