"""Members' preferences: pings, speed, visibility, a suffix for every prompt. They hold in every server.

Features may add flag aliases: flags of a member's own, such as `--mine`, that stand for words and flags.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Literal

from bot.domain.errors import UserError
from bot.domain.texts import shorten
from bot.prompt.concepts import clean_prompt
from bot.prompt.flag_aliases import find_unknown_flags
from bot.store import Store
from bot.store.members import preferences as stored

Speed = Literal["fast", "relaxed"]
Visibility = Literal["public", "private"]
VariationStrength = Literal["subtle", "strong"]
MAX_SUFFIX = 200  # characters
CHOICES: dict[str, tuple[str, ...]] = {
    "speed": ("fast", "relaxed"),
    "results": ("public", "private"),
    "variation": ("subtle", "strong"),
}
ON_WORDS = ("on", "yes", "true", "1")
OFF_WORDS = ("off", "no", "false", "0")


@dataclass(frozen=True)
class Preference:
    """A member's preferences.

    `ping`: a new message when a job of more than a minute ends; `direct`: each finished picture also as a direct
    message; `variation`: what V1–V4 do; `remix`: V and re-roll ask for a changed prompt first; `suffix`: added to every
    prompt that they type.
    """

    ping: bool = True
    direct: bool = False
    remix: bool = False
    speed: Speed = "fast"
    results: Visibility = "public"
    variation: VariationStrength = "subtle"
    suffix: str = ""


NAMES = tuple(field.name for field in fields(Preference))


class Preferences:
    def __init__(self, store: Store) -> None:
        self._store = store

    async def load_preference(self, member: str) -> Preference:
        """Return a member's preferences; the defaults if none are set."""
        return known_preferences(await self._store.query(stored.load_preferences, member))

    async def set_preference(self, member: str, name: str, text: str) -> Preference:
        """Set one preference from typed text; an empty text resets it. Raises `UserError` (422)."""
        if name not in NAMES:
            raise UserError(f"There is no preference “{shorten(name, 40)}”; there are {', '.join(NAMES)}.")
        value = _parse_value(name, text.strip()) if text.strip() else getattr(Preference(), name)
        return known_preferences(await self._store.write(stored.update_preferences, member, {name: value}))

    async def load_flag_aliases(self, member: str, text: str) -> dict[str, str]:
        """Return the member's flag aliases that `text` may use, without a read if all its flags are known.

        Raises `UserError` for a text longer than a prompt may be, and for braces that cannot be parsed.
        """
        may_use_one = find_unknown_flags(clean_prompt(text))
        return await self._store.query(stored.load_flag_aliases, member) if may_use_one else {}


def _parse_value(name: str, text: str) -> str | bool:
    if name == "suffix":
        if len(text) > MAX_SUFFIX:
            raise UserError(f"A suffix has at most {MAX_SUFFIX} characters; this one has {len(text)}.")
        return text
    word = text.casefold()
    if name in CHOICES:
        if word not in CHOICES[name]:
            raise UserError(f"“{name}” is {' or '.join(CHOICES[name])}, not “{shorten(text, 40)}”.")
        return word
    if word not in ON_WORDS + OFF_WORDS:
        raise UserError(f"“{name}” is on or off, not “{shorten(text, 40)}”.")
    return word in ON_WORDS


def known_preferences(values: dict[str, object]) -> Preference:
    """Return the preferences of a member's stored values (beside `MODEL_KEY`)."""
    known_values = {name: value for name, value in values.items() if name in NAMES}
    return replace(Preference(), **known_values)  # written by `set_preference` alone


MODEL_KEY = "api_model"  # beside the preferences that members set by words


class ModelChoices:
    """The model that a member chose for programs whose requests name none; forgotten with the preferences."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def load(self, member: str) -> str | None:
        """Return the name of the chosen model; None if none was chosen. It may be gone by now."""
        name = (await self._store.query(stored.load_preferences, member)).get(MODEL_KEY)
        return name if isinstance(name, str) and name else None

    async def choose(self, member: str, model: str) -> None:
        """Store a model's name."""
        await self._store.write(stored.update_preferences, member, {MODEL_KEY: model})
