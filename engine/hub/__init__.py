"""Models on the hub: a catalogue of well-known ones, downloads with checksums, and folders of added models.

Imports no torch, and `huggingface_hub` only when it asks the hub.
"""
