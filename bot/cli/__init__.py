"""The commands of the command line; `bot.__main__` registers and starts them."""
