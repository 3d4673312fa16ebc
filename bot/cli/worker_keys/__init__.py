"""`darkroom worker-key`: lets a worker of another machine in."""
