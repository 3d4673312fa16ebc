"""Pictures as files: checked decoding of bytes from outside, encoding with the recipe's text. Imports no torch."""
