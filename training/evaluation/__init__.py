"""The evaluation of a model, by a judge that was trained on real pictures only. The measures are pure functions."""
