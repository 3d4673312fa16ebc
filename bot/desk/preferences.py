"""Members' preferences: pings, speed, visibility, a suffix for every prompt. They hold in every server."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Literal

from bot.refused import Refused
from bot.sentences import shortened
from bot.store import Store
from bot.store import members as stored

Speed = Literal["fast", "relaxed"]
Results = Literal["public", "private"]
Strength = Literal["subtle", "strong"]
SUFFIX = 200  # characters
WORDS: dict[str, tuple[str, ...]] = {
    "speed": ("fast", "relaxed"),
    "results": ("public", "private"),
    "variation": ("subtle", "strong"),
}
YES, NO = ("on", "yes", "true", "1"), ("off", "no", "false", "0")


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
    results: Results = "public"
    variation: Strength = "subtle"
    suffix: str = ""


NAMES = tuple(field.name for field in fields(Preference))


class Preferences:
    def __init__(self, store: Store) -> None:
        self._store = store

    async def of(self, member: str) -> Preference:
        """Return a member's preferences; the defaults if none are set."""
        return known(await self._store.ask(stored.preferences, member))

    async def prefer(self, member: str, name: str, text: str) -> Preference:
        """Set one preference from typed text; an empty text resets it. Raises `Refused` (422)."""
        if name not in NAMES:
            raise Refused(f"There is no preference “{shortened(name, 40)}”; there are {', '.join(NAMES)}.")
        value = _read(name, text.strip()) if text.strip() else getattr(Preference(), name)
        return known(await self._store.write(stored.prefer, member, {name: value}))


def _read(name: str, text: str) -> str | bool:
    if name == "suffix":
        if len(text) > SUFFIX:
            raise Refused(f"A suffix has at most {SUFFIX} characters; this one has {len(text)}.")
        return text
    word = text.casefold()
    if name in WORDS:
        if word not in WORDS[name]:
            raise Refused(f"“{name}” is {' or '.join(WORDS[name])}, not “{shortened(text, 40)}”.")
        return word
    if word not in YES + NO:
        raise Refused(f"“{name}” is on or off, not “{shortened(text, 40)}”.")
    return word in YES


def known(values: dict[str, object]) -> Preference:
    """Return the stored preferences that this version knows: an older or newer version may have written them."""
    kept = {name: value for name, value in values.items() if name in NAMES}
    return replace(Preference(), **kept)  # pyright: ignore[reportArgumentType] - written by `prefer` alone
