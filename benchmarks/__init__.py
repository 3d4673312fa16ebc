"""`darkroom bench`: speed, memory and fairness, as rows with a figure and a goal."""

import engine as engine  # silences what torchao says when a fixture imports diffusers before the engine does
