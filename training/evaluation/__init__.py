"""The evaluation of a model, by a judge that was trained on the real pictures only. The measures are pure functions."""
