"""What is learnt from: artwork and folders of pictures, each picture with its words. Knows pixels, no networks."""
