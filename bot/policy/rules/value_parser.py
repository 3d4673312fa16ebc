"""Values of settings as text, parsed and formatted: `30 min`, `512x512`, `embedded, second`, `off`. Pure.

`parse_value` parses what `format_setting_value` formats, so that an export can be imported. Every mistake is one clear
sentence with the range, or the nearest name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType

from rapidfuzz import fuzz, process

from bot.domain.errors import UserError
from bot.domain.texts import clean_text, shorten
from bot.policy.rules.catalogue import SETTINGS, Setting, SettingKind
from bot.policy.rules.rule import ALL, RuleValue
from bot.policy.rules.word_filter import parse_pattern, parse_word

UNIT_SECONDS = {
    **dict.fromkeys(("s", "sec", "second"), 1),
    **dict.fromkeys(("m", "min", "minute"), 60),
    **dict.fromkeys(("h", "hour"), 3600),
    **dict.fromkeys(("d", "day"), 86_400),
}
YES_WORDS = ("on", "yes", "true", "1")
NO_WORDS = ("off", "no", "false", "0")
UNLIMITED = ("no limit", "unlimited", "any")  # `format_setting_value` uses the first
MAX_LENGTH = 65_536  # most characters that are parsed

_INTEGER = re.compile(r"[0-9]{1,12}")
_DURATION = re.compile(r"(?:[0-9]{1,9}(?:\.[0-9]{1,3})? ?[a-z]{1,7} ?)+")
_DURATION_PART = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,3})?) ?([a-z]{1,7})")
_SIZE = re.compile(r"([0-9]{1,5})(?: ?[x×*] ?([0-9]{1,5}))?(?: ?px)?")
_AREA = re.compile(r"([0-9]{1,9}) pixels")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")  # as `engine.contract.Name`
_CHANNEL = re.compile(r"(?:<#)?([0-9]{1,20})>?")


def find_setting(name: str) -> Setting:
    """Return the setting of that name. Raises `UserError` (422), naming the nearest one."""
    setting = SETTINGS.get(name.strip().casefold().replace("-", "_").replace(" ", "_"))
    if setting is None:
        raise UserError(
            f"There is no setting “{shorten(name, 40)}”; the nearest is {nearest_name(name, tuple(SETTINGS))}."
        )
    return setting


def nearest_name(typed_name: str, names: tuple[str, ...]) -> str:
    """Return the name that the admin probably meant."""
    return str(process.extractOne(typed_name[:40].casefold(), names, scorer=fuzz.ratio)[0])


def parse_value(setting: Setting, text: str) -> RuleValue:
    """Parse a typed value and check its range. Raises `UserError` (422)."""
    if len(text) > MAX_LENGTH:
        raise UserError(f"That is too long for {setting.name}: at most {MAX_LENGTH} characters.")
    return PARSERS[setting.kind](setting, text)


def parse_list(setting: Setting, texts: list[str]) -> RuleValue:
    """Parse a list whose parts are already separate. Raises `UserError` (422)."""
    if setting.kind not in LIST_PARSERS:
        raise UserError(f"{setting.name} takes one value and not a list.")
    return LIST_PARSERS[setting.kind](setting, texts)


def _fold_text(text: str) -> str:
    return clean_text(text).casefold()


def _parse_bounded(
    setting: Setting, text: str, read: Callable[[str], int | None], expected_form: str, *, is_limit: bool = True
) -> int:
    """Parse what `read` reads, within the setting's bounds. `is_limit`: "no limit" stands for the most."""
    folded_text = _fold_text(text)
    value = setting.maximum if is_limit and folded_text in UNLIMITED else read(folded_text)
    if value is None or not setting.minimum <= value <= setting.maximum:
        raise _invalid_value(setting, text, expected_form)
    return value


def _parse_number(setting: Setting, text: str) -> int:
    expected_form = f"a whole number from {setting.minimum} to {setting.maximum}"
    return _parse_bounded(setting, text, lambda one: int(one) if _INTEGER.fullmatch(one) else None, expected_form)


def _parse_seconds(setting: Setting, text: str) -> int:
    expected_form = f"a time such as “90 s” or “2 min”, up to {format_setting_value(setting, setting.maximum)}"
    return _parse_bounded(setting, text, parse_duration, expected_form, is_limit=False)


def _parse_cost(setting: Setting, text: str) -> int:
    expected_form = "device time such as “30 min”, “2 h”, “1800” (seconds) or “no limit”"
    return _parse_bounded(setting, text, parse_duration, expected_form)


def parse_duration(text: str) -> int | None:
    """Return whole seconds, rounded up; None if it is no time."""
    if _INTEGER.fullmatch(text):
        return int(text)
    if not _DURATION.fullmatch(text + " "):
        return None
    parts = _DURATION_PART.findall(text)
    factors = [UNIT_SECONDS.get(unit, UNIT_SECONDS.get(unit.removesuffix("s"), 0)) for _, unit in parts]
    if not all(factors):
        return None
    return math.ceil(sum(float(number) * factor for (number, _), factor in zip(parts, factors, strict=True)))


def _parse_size(setting: Setting, text: str) -> int:
    return _parse_bounded(setting, text, _read_pixels, "a size such as “512x512” or “512”, from 16x16 to 4096x4096")


def _read_pixels(text: str) -> int | None:
    if area := _AREA.fullmatch(text):
        return int(area[1])
    match = _SIZE.fullmatch(text)
    return int(match[1]) * int(match[2] or match[1]) if match else None


def _parse_choice(setting: Setting, text: str) -> str:
    folded_text = _fold_text(text)
    if folded_text not in setting.choices:
        raise _invalid_value(setting, text, " or ".join(setting.choices))
    return folded_text


def _parse_switch(setting: Setting, text: str) -> bool:
    folded_text = _fold_text(text)
    if folded_text not in YES_WORDS + NO_WORDS:
        raise _invalid_value(setting, text, "on or off")
    return folded_text in YES_WORDS


def _parse_text(setting: Setting, text: str) -> str:
    plain_text = clean_text(text)
    if not plain_text or len(plain_text) > setting.maximum:
        raise UserError(
            f"{setting.name} takes a text of 1 to {setting.maximum} characters; this one has {len(plain_text)}."
        )
    return plain_text


def _parse_channel(setting: Setting, text: str) -> str:
    match = _CHANNEL.fullmatch(clean_text(text))
    if match is None:
        raise _invalid_value(setting, text, "a channel's id")
    return match[1]


def _split_parts(text: str) -> list[str]:
    return [part for part in (clean_text(part) for part in re.split(r"[,\n]", text)) if part]


def _parse_all_or_none(names: list[str]) -> RuleValue | None:
    """Return what a single "all" or "none" stands for; None for any other list."""
    if names in (["all"], ["*"]):
        return ALL
    return () if names == ["none"] else None


def _parse_choices(setting: Setting, parts: list[str]) -> RuleValue:
    names = [part.casefold() for part in parts]
    if (whole := _parse_all_or_none(names)) is not None:
        return whole
    for part in names:
        if part not in setting.choices:
            raise UserError(
                f"{setting.name} knows no “{shorten(part, 40)}”; the nearest is {nearest_name(part, setting.choices)}. "
                f"It takes {', '.join(setting.choices)}, all or none."
            )
    if not names:
        raise _invalid_value(setting, "", f"{', '.join(setting.choices)}, all or none")
    return tuple(choice for choice in setting.choices if choice in names)


def _parse_names(setting: Setting, parts: list[str]) -> RuleValue:
    if (whole := _parse_all_or_none([part.casefold() for part in parts])) is not None:
        return whole
    for part in parts:
        if not _NAME.fullmatch(part):
            raise _invalid_value(setting, part, "names, separated by commas, all or none")
    return _sort_unique(setting, parts)


def _parse_texts(setting: Setting, parts: list[str]) -> RuleValue:
    if len(parts) > 2 * setting.max_items:
        raise UserError(f"{setting.name} takes at most {setting.max_items}; these are {len(parts)}.")
    parse_part = parse_pattern if setting.name == "patterns" else parse_word
    return _sort_unique(setting, [parse_part(part) for part in parts if clean_text(part)])


def _sort_unique(setting: Setting, parts: list[str]) -> RuleValue:
    unique_parts = tuple(sorted({part for part in parts if part}, key=lambda part: (part.casefold(), part)))
    if not unique_parts:
        raise UserError(f"{setting.name} takes at least one; to have none, unset it.")
    if len(unique_parts) > setting.max_items:
        raise UserError(f"{setting.name} takes at most {setting.max_items}; these are {len(unique_parts)}.")
    return unique_parts


def _invalid_value(setting: Setting, text: str, expected_form: str) -> UserError:
    excerpt = shorten(text, 40)
    problem = f"{setting.name} cannot be “{excerpt}”" if excerpt else f"{setting.name} needs a value"
    return UserError(f"{problem}: it takes {expected_form}.")


LIST_PARSERS: Mapping[SettingKind, Callable[[Setting, list[str]], RuleValue]] = MappingProxyType(
    {"choices": _parse_choices, "names": _parse_names, "texts": _parse_texts}
)
PARSERS: Mapping[SettingKind, Callable[[Setting, str], RuleValue]] = MappingProxyType(
    {
        "number": _parse_number,
        "cost": _parse_cost,
        "seconds": _parse_seconds,
        "size": _parse_size,
        "choice": _parse_choice,
        "switch": _parse_switch,
        "text": _parse_text,
        "channel": _parse_channel,
        "choices": lambda setting, text: _parse_choices(setting, _split_parts(text)),
        "names": lambda setting, text: _parse_names(setting, _split_parts(text)),
        "texts": lambda setting, text: _parse_texts(
            setting, text.split("\n") if setting.name == "patterns" else _split_parts(text)
        ),
    }
)


def format_setting_value(setting: Setting, value: RuleValue) -> str:
    """Return a value as an admin would type it; `parse_value` parses it back (each text of a list has its line)."""
    if isinstance(value, tuple):
        return "all" if value == ALL else ("\n" if setting.kind == "texts" else ", ").join(value) or "none"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, str):
        return value
    if setting.is_numeric and value >= setting.maximum and setting.maximum >= NO_LIMIT_FROM:
        return UNLIMITED[0]
    if setting.kind in ("cost", "seconds"):
        return _format_duration(value)
    return _format_size(value) if setting.kind == "size" else str(value)


NO_LIMIT_FROM = 100_000  # a bound as large as this counts as no limit


def _format_size(pixels: int) -> str:
    side = math.isqrt(pixels)
    return f"{side}x{side}" if side * side == pixels else f"{pixels} pixels"


def _format_duration(seconds: int) -> str:
    """Return the exact duration: "1 h 30 min", "0 s"."""
    parts: list[str] = []
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1)):
        number, seconds = divmod(seconds, size)
        if number:
            parts.append(f"{number} {unit}")
    return " ".join(parts) or "0 s"
