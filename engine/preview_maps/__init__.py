"""Linear maps from latents to colours, for previews without a decoder."""
