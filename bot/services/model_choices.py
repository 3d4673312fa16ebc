"""The model that a member chose for programs whose requests name none. Nobody else's requests change by it."""

from __future__ import annotations

from bot.store import Store
from bot.store.members import preferences as stored

MODEL_KEY = "api_model"  # beside the preferences that members set by words (`bot.jobs.preferences`)


class ModelChoices:
    """Stored with the member's preferences: exported and forgotten with them."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def load(self, member: str) -> str | None:
        """Return the name of the chosen model; None if none was chosen. It may be gone by now."""
        name = (await self._store.query(stored.load_preferences, member)).get(MODEL_KEY)
        return name if isinstance(name, str) and name else None

    async def choose(self, member: str, model: str) -> None:
        """Store a model's name."""
        await self._store.write(stored.update_preferences, member, {MODEL_KEY: model})
