"""A simulated day on a simulated device."""
