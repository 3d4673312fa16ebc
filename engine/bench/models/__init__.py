"""`darkroom bench models`: models of real sizes with random weights, ours beside the unmodified pipeline."""
