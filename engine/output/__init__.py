"""From latents to pictures: decode, postprocess, preview, upscale, check, encode."""
