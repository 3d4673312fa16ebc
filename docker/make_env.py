"""Prints the secrets that docker-compose.yml reads from .env: the broker's password and the engine's key."""

import secrets

from engine.bus.worker_keys import create_key

key, seed = create_key("engine", ["default"], "")
print(f"DARKROOM_NATS_TOKEN=t{secrets.token_hex(24)}")  # noqa: T201 - begins with a letter: it is never read as a number
print(f"DARKROOM_ENGINE_KEY={seed}\nDARKROOM_ENGINE_PUBLIC={key.public}")  # noqa: T201
