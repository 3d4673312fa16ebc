"""Accounts for the fair order, and the ledger of usage."""
