"""Control networks: pictures whose shapes an image follows."""
