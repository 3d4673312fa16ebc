"""Reference pictures: IP-Adapters (Ye et al. 2023), their image encoders, and attention to pictures."""
