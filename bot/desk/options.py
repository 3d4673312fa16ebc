"""Members' own options: what `--mine` in a prompt of theirs stands for, in every server, for this member alone.

Knows the store; knows nothing of front ends. What an option may hold is the grammar's (`bot.prompt.own`).
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
    """Reads and writes them. `models`: the names that `--model` may have."""

    def __init__(self, store: Store, models: Callable[[], Sequence[str]]) -> None:
        self._store, self._models = store, models

    async def of(self, member: str) -> dict[str, str]:
        """What each of a member's options stands for, by name."""
        return await self._store.ask(stored.of, member)

    async def meant(self, member: str, text: str) -> dict[str, str]:
        """Those that `text` may have; nothing is looked up for a text all of whose flags are known. Raises `Refused`
        for more text than a prompt may have, and for braces that cannot be read.
        """
        return await self.of(member) if foreign(clean(text)) else {}

    async def put(self, member: str, name: str, value: str) -> str:
        """Note one from what was typed, in place of an older one; its name. Raises `Refused`."""
        name, value = name_of(name), value_of(value, self._models())
        if not await self._store.write(stored.put, member, name, value, MOST):
            raise Refused(f"You have {MOST} options, the most there are: delete one first.")
        return name

    async def drop(self, member: str, name: str) -> str:
        """Delete one; its name. Raises `Refused` (404) where there is none."""
        bare = name.strip().lower().removeprefix("--")
        if not await self._store.write(stored.drop, member, bare):
            raise Refused(f"You have no option --{shortened(bare, 40)}.", 404)
        return bare
