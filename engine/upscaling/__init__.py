"""The super-resolver: a network, trained as a GAN, that upscales a picture four times."""
