"""The training pictures: artwork and folders of pictures, with their captions. Knows pixels, no networks."""
