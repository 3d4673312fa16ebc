"""A row of a report: name, figure, goal, unit."""
