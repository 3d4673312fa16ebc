"""Parties: members who steer one picture together."""
