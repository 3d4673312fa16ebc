"""The engine: claims jobs from the queue and develops pictures on one device. Never imports `bot` or `discord`."""
