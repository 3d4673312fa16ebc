"""The `darkroom bench models` benchmark: models of real sizes with random weights, beside the unmodified pipeline."""
