"""The engine: claims jobs from the queue and makes their pictures on one device. Never imports `bot` or `discord`."""
