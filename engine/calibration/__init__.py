"""How fast a model runs on this device; real work refines it."""
