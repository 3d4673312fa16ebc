"""The training pictures: artwork and folders of pictures, with their captions. No networks."""
