"""Backends as workers: jobs are drawn by another server (ComfyUI, AUTOMATIC1111, OpenAI's image API). No torch.

A backend worker takes jobs, beats, cancels and publishes as every worker does; only its engine is elsewhere. What comes
from a backend is untrusted: bodies are bounded, pictures are decoded anew.
"""
