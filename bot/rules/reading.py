"""Values of settings as text, parsed and formatted: `30 min`, `512x512`, `embedded, second`, `off`. Pure.

`read` parses what `written` formats, so that an export can be imported. Every mistake is one clear sentence with the
range, or the nearest name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType

from rapidfuzz import fuzz, process

from bot.refused import Refused
from bot.rules.catalogue import SETTINGS, Kind, Setting
from bot.rules.rule import ALL, Value
from bot.rules.words import read_pattern, read_word
from bot.sentences import plain, shortened

UNITS = {"s": 1, "sec": 1, "second": 1, "m": 60, "min": 60, "minute": 60, "h": 3600, "hour": 3600, "d": 86_400,
         "day": 86_400}  # fmt: skip
YES, NO = ("on", "yes", "true", "1"), ("off", "no", "false", "0")
UNLIMITED = ("no limit", "unlimited", "any")  # `written` uses the first
LONGEST = 65_536  # most characters that are parsed

_WHOLE = re.compile(r"[0-9]{1,12}")
_TIMES = re.compile(r"(?:[0-9]{1,9}(?:\.[0-9]{1,3})? ?[a-z]{1,7} ?)+")
_TIME = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,3})?) ?([a-z]{1,7})")
_SIZE = re.compile(r"([0-9]{1,5})(?: ?[x×*] ?([0-9]{1,5}))?(?: ?px)?")
_AREA = re.compile(r"([0-9]{1,9}) pixels")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")  # as `engine.job.Name`
_CHANNEL = re.compile(r"(?:<#)?([0-9]{1,20})>?")


def setting(name: str) -> Setting:
    """Return the setting of that name. Raises `Refused` (422), naming the nearest one."""
    found = SETTINGS.get(name.strip().casefold().replace("-", "_").replace(" ", "_"))
    if found is None:
        raise Refused(f"There is no setting “{shortened(name, 40)}”; the nearest is {nearest(name, tuple(SETTINGS))}.")
    return found


def nearest(written: str, names: tuple[str, ...]) -> str:
    """Return the name that was probably meant."""
    return str(process.extractOne(written[:40].casefold(), names, scorer=fuzz.ratio)[0])


def read(one: Setting, text: str) -> Value:
    """Parse a typed value and check its range. Raises `Refused` (422)."""
    if len(text) > LONGEST:
        raise Refused(f"That is too long for {one.name}: at most {LONGEST} characters.")
    return READERS[one.kind](one, text)


def read_list(one: Setting, texts: list[str]) -> Value:
    """Parse a list whose parts are already separate. Raises `Refused` (422)."""
    if one.kind not in LISTS:
        raise Refused(f"{one.name} takes one value and not a list.")
    return LISTS[one.kind](one, texts)


def _plain(text: str) -> str:
    return plain(text).casefold()


def _number(one: Setting, text: str) -> int:
    typed = _plain(text)
    if typed in UNLIMITED:
        return one.most
    if not _WHOLE.fullmatch(typed) or not one.least <= int(typed) <= one.most:
        raise _bad(one, text, f"a whole number from {one.least} to {one.most}")
    return int(typed)


def _seconds(one: Setting, text: str) -> int:
    typed = _plain(text)
    seconds = _duration(typed)
    if seconds is None or not one.least <= seconds <= one.most:
        raise _bad(one, text, f"a time such as “90 s” or “2 min”, up to {written(one, one.most)}")
    return seconds


def _cost(one: Setting, text: str) -> int:
    typed = _plain(text)
    seconds = one.most if typed in UNLIMITED else _duration(typed)
    if seconds is None or not one.least <= seconds <= one.most:
        raise _bad(one, text, "device time such as “30 min”, “2 h”, “1800” (seconds) or “no limit”")
    return seconds


def _duration(typed: str) -> int | None:
    """Return whole seconds, rounded up; None if it is no time."""
    if _WHOLE.fullmatch(typed):
        return int(typed)
    if not _TIMES.fullmatch(typed + " "):
        return None
    parts = _TIME.findall(typed)
    factors = [UNITS.get(unit, UNITS.get(unit.removesuffix("s"), 0)) for _, unit in parts]
    if not all(factors):
        return None
    return math.ceil(sum(float(number) * factor for (number, _), factor in zip(parts, factors, strict=True)))


def _size(one: Setting, text: str) -> int:
    typed = _plain(text)
    if typed in UNLIMITED:
        return one.most
    area, found = _AREA.fullmatch(typed), _SIZE.fullmatch(typed)
    pixels = int(area[1]) if area else int(found[1]) * int(found[2] or found[1]) if found else 0
    if not one.least <= pixels <= one.most:
        raise _bad(one, text, "a size such as “512x512” or “512”, from 16x16 to 4096x4096")
    return pixels


def _choice(one: Setting, text: str) -> str:
    typed = _plain(text)
    if typed not in one.choices:
        raise _bad(one, text, " or ".join(one.choices))
    return typed


def _switch(one: Setting, text: str) -> bool:
    typed = _plain(text)
    if typed not in YES + NO:
        raise _bad(one, text, "on or off")
    return typed in YES


def _text(one: Setting, text: str) -> str:
    typed = plain(text)
    if not typed or len(typed) > one.most:
        raise Refused(f"{one.name} takes a text of 1 to {one.most} characters; this one has {len(typed)}.")
    return typed


def _channel(one: Setting, text: str) -> str:
    found = _CHANNEL.fullmatch(plain(text))
    if found is None:
        raise _bad(one, text, "a channel's id")
    return found[1]


def _parts(text: str) -> list[str]:
    return [part for part in (plain(part) for part in re.split(r"[,\n]", text)) if part]


def _choices(one: Setting, parts: list[str]) -> Value:
    typed = [part.casefold() for part in parts]
    if typed in (["all"], ["*"]):
        return ALL
    if typed == ["none"]:
        return ()
    for part in typed:
        if part not in one.choices:
            raise Refused(
                f"{one.name} knows no “{shortened(part, 40)}”; the nearest is {nearest(part, one.choices)}. "
                f"It takes {', '.join(one.choices)}, all or none."
            )
    if not typed:
        raise _bad(one, "", f"{', '.join(one.choices)}, all or none")
    return tuple(choice for choice in one.choices if choice in typed)


def _names(one: Setting, parts: list[str]) -> Value:
    if [part.casefold() for part in parts] in (["all"], ["*"]):
        return ALL
    if [part.casefold() for part in parts] == ["none"]:
        return ()
    for part in parts:
        if not _NAME.fullmatch(part):
            raise _bad(one, part, "names, separated by commas, all or none")
    return _bounded(one, parts)


def _texts(one: Setting, parts: list[str]) -> Value:
    if len(parts) > 2 * one.longest:
        raise Refused(f"{one.name} takes at most {one.longest}; these are {len(parts)}.")
    check = read_pattern if one.name == "patterns" else read_word
    return _bounded(one, [check(part) for part in parts if plain(part)])


def _bounded(one: Setting, parts: list[str]) -> Value:
    found = tuple(sorted({part for part in parts if part}, key=lambda part: (part.casefold(), part)))
    if not found:
        raise Refused(f"{one.name} takes at least one; to have none, unset it.")
    if len(found) > one.longest:
        raise Refused(f"{one.name} takes at most {one.longest}; these are {len(found)}.")
    return found


def _bad(one: Setting, text: str, takes: str) -> Refused:
    typed = shortened(text, 40)
    begins = f"{one.name} cannot be “{typed}”" if typed else f"{one.name} needs a value"
    return Refused(f"{begins}: it takes {takes}.")


LISTS: Mapping[Kind, Callable[[Setting, list[str]], Value]] = MappingProxyType(
    {"choices": _choices, "names": _names, "texts": _texts}
)
READERS: Mapping[Kind, Callable[[Setting, str], Value]] = MappingProxyType(
    {
        "number": _number,
        "cost": _cost,
        "seconds": _seconds,
        "size": _size,
        "choice": _choice,
        "switch": _switch,
        "text": _text,
        "channel": _channel,
        "choices": lambda one, text: _choices(one, _parts(text)),
        "names": lambda one, text: _names(one, _parts(text)),
        "texts": lambda one, text: _texts(one, text.split("\n") if one.name == "patterns" else _parts(text)),
    }
)


def written(one: Setting, value: Value) -> str:
    """Return a value as an admin would type it; `read` parses it back (each text of a list has its line)."""
    if isinstance(value, tuple):
        return "all" if value == ALL else ("\n" if one.kind == "texts" else ", ").join(value) or "none"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, str):
        return value
    if one.numeric and value >= one.most and one.most >= MOST_SAID:
        return UNLIMITED[0]
    if one.kind in ("cost", "seconds"):
        return _clock(value)
    return _measured(value) if one.kind == "size" else str(value)


MOST_SAID = 100_000  # a bound as large as this counts as no limit


def _measured(pixels: int) -> str:
    side = math.isqrt(pixels)
    return f"{side}x{side}" if side * side == pixels else f"{pixels} pixels"


def _clock(seconds: int) -> str:
    """Return the exact duration: "1 h 30 min", "0 s"."""
    parts: list[str] = []
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1)):
        number, seconds = divmod(seconds, size)
        if number:
            parts.append(f"{number} {unit}")
    return " ".join(parts) or "0 s"
