"""Inpainting models: U-Nets that also see the mask and what lies outside of it."""
