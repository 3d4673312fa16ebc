"""`darkroom bench`: speed, memory and fairness, as rows with a figure and a goal."""
