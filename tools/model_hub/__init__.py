"""A hub on this machine that speaks the hub's HTTP API, for the real client."""
