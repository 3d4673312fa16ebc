"""The super-resolver: a GAN-trained network that enlarges a picture four times."""
