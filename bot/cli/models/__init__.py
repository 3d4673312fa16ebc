"""`darkroom models`: models of the hub on this machine."""
