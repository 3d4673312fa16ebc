"""How good the model is, judged by a network that was trained on the real pictures only. Measures are pure."""
