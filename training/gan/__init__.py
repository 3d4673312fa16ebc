"""Training of pixel networks with a discriminator: the autoencoder and the super-resolver."""
