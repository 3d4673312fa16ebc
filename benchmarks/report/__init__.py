"""A row of a report: a figure with its name, goal and unit."""
