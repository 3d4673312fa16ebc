"""Networks that learn pixels against a discriminator: the autoencoder and the super-resolver."""
