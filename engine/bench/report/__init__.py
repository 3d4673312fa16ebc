"""`darkroom gpu-report`: what a card can do with our engine, as files to attach to an issue."""
