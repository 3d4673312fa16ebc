"""Makes jobs: from a prompt, from finished pictures, from part of a picture."""
