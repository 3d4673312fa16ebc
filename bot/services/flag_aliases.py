"""Flag aliases: what a member's own flag such as `--mine` stands for, in every server, for this member alone.

`bot.prompt.flag_aliases` defines what an alias may contain.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bot.domain.errors import UserError
from bot.domain.texts import shorten
from bot.prompt.concepts import clean_prompt
from bot.prompt.flag_aliases import find_unknown_flags, parse_alias_name, parse_alias_value
from bot.store import Store
from bot.store.members import flag_aliases as stored

MAX_ALIASES = 20  # aliases of a member


class FlagAliases:
    """Reads and writes flag aliases. `model_names`: the names that `--model` accepts."""

    def __init__(self, store: Store, model_names: Callable[[], Sequence[str]]) -> None:
        self._store = store
        self._model_names = model_names

    async def list_aliases(self, member: str) -> dict[str, str]:
        """Return a member's flag aliases by name."""
        return await self._store.query(stored.list_flag_aliases, member)

    async def aliases_for(self, member: str, text: str) -> dict[str, str]:
        """Return the aliases that `text` may use, without a read if all its flags are known.

        Raises `UserError` for a text longer than a prompt may be, and for braces that cannot be parsed.
        """
        return await self.list_aliases(member) if find_unknown_flags(clean_prompt(text)) else {}

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
