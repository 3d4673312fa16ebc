"""The bot package: everything but the engine. Imports no torch or diffusers, and of `engine` only light modules."""
