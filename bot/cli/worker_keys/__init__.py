"""`darkroom worker-key`: admits workers on other machines."""
