"""Flag aliases: what a member's own flag such as `--mine` stands for, in every server, for this member alone.

`rules` says what an alias may contain, `bot.prompt.flag_aliases` expands it.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from bot.domain.errors import UserError
from bot.domain.feature import RunningFeature
from bot.domain.texts import shorten
from bot.features.flag_aliases import store as stored
from bot.features.flag_aliases.rules import MAX_ALIASES, parse_alias_name, parse_alias_value
from bot.store import Store

if TYPE_CHECKING:
    from bot.app.wiring import App


class FlagAliases:
    """Reads and writes flag aliases. `model_names`: the names that `--model` accepts."""

    def __init__(self, store: Store, model_names: Callable[[], Sequence[str]]) -> None:
        self._store = store
        self._model_names = model_names

    async def list_aliases(self, member: str) -> dict[str, str]:
        """Return a member's flag aliases by name."""
        return await self._store.query(stored.load_flag_aliases, member)

    async def set_alias(self, member: str, name: str, value: str) -> str:
        """Set an alias from typed text; return its name. Raises `UserError`."""
        name = parse_alias_name(name)
        value = parse_alias_value(value, self._model_names())
        if not await self._store.write(stored.put_flag_alias, member, name, value, MAX_ALIASES):
            raise UserError(f"You have {MAX_ALIASES} options, the most there are: delete one first.")
        return name

    async def delete_alias(self, member: str, name: str) -> str:
        """Delete an alias; return its name. Raises `UserError` (404) if there is none."""
        bare_name = name.strip().lower().removeprefix("--")
        if not await self._store.write(stored.delete_flag_alias, member, bare_name):
            raise UserError(f"You have no option --{shorten(bare_name, 40)}.", 404)
        return bare_name


@asynccontextmanager
async def open_service(app: App) -> AsyncGenerator[RunningFeature]:
    """Open the flag aliases over the application's store and models."""
    yield RunningFeature(FlagAliases(app.store, app.queue.catalog.model_names))
