"""Webhooks: signed messages about jobs to addresses that programs and the operator choose."""
