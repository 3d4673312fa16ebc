"""Flag aliases: what a member's own flag such as `--mine` stands for, in every server, for this member alone.

`bot.prompt.own` defines what an alias may contain.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bot.prompt.concepts import clean
from bot.prompt.own import foreign, name_of, value_of
from bot.refused import Refused
from bot.sentences import shortened
from bot.store import Store
from bot.store import options as stored

MOST = 20  # options of a member


class Options:
    """Reads and writes flag aliases. `models`: the names that `--model` accepts."""

    def __init__(self, store: Store, models: Callable[[], Sequence[str]]) -> None:
        self._store, self._models = store, models

    async def of(self, member: str) -> dict[str, str]:
        """Return a member's flag aliases by name."""
        return await self._store.ask(stored.of, member)

    async def meant(self, member: str, text: str) -> dict[str, str]:
        """Return the aliases that `text` may use, without a read if all its flags are known.

        Raises `Refused` for a text longer than a prompt may be, and for braces that cannot be parsed.
        """
        return await self.of(member) if foreign(clean(text)) else {}

    async def put(self, member: str, name: str, value: str) -> str:
        """Set an alias from typed text; return its name. Raises `Refused`."""
        name, value = name_of(name), value_of(value, self._models())
        if not await self._store.write(stored.put, member, name, value, MOST):
            raise Refused(f"You have {MOST} options, the most there are: delete one first.")
        return name

    async def drop(self, member: str, name: str) -> str:
        """Delete an alias; return its name. Raises `Refused` (404) if there is none."""
        bare = name.strip().lower().removeprefix("--")
        if not await self._store.write(stored.drop, member, bare):
            raise Refused(f"You have no option --{shortened(bare, 40)}.", 404)
        return bare
