"""Jobs: rows, lists, destinations, history."""
