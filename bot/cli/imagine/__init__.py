"""`darkroom imagine`: a prompt in the terminal."""
