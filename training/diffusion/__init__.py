"""Trains the diffusion network and LoRAs."""
