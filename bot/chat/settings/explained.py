"""What holds for a member, in short lines for a phone: what limits them now, what rules set, and the defaults.

Pure: explanations in, texts in Discord's markdown out. Knows which settings a card names; knows nothing of rules.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from bot.chat.settings import wording
from bot.rules.telling import Explained
from bot.sentences import quoted

Group = tuple[str, list[str]]  # a heading, and its lines
NOW, RULED, DEFAULT = "Now", "Set by rules", "By default"
SHUT = ("blocked", "closed")  # settings that stop everything
_MARK = re.compile(r"§(channel|role|user)([0-9]{1,20})§")
_MENTIONS = {"channel": "<#", "role": "<@&", "user": "<@"}


def marked(kind: str, number: str) -> str:
    """Return a placeholder of a `channel`, `role` or `user` that survives escaping; `_mentioned` makes it a mention."""
    return f"§{kind}{number}§"


def groups(found: Sequence[Explained]) -> list[Group]:
    """Return all settings under their headings, the fullest limit first; empty groups are left out."""
    now = sorted(filter(_limits, found), key=lambda one: -1.0 if one.setting in SHUT else 1 - (one.taken or 0))
    ruled = [one for one in found if one.rule is not None and one not in now]
    named = (*wording.EACH, "blocked")
    rest = [one for one in found if one.setting in named and one not in now and one not in ruled]
    shown = ((NOW, map(entry, now)), (RULED, map(entry, ruled)), (DEFAULT, (f"-# {line(one)}" for one in rest)))
    return [(heading, lines) for heading, each in shown if (lines := list(each))]


def entry(one: Explained) -> str:
    """Return a setting's value, and below it why it holds."""
    why = one.sentence.removeprefix(f"{one.setting} is {one.value}: ")
    full = "⛔ " if _shut(one) or (one.taken or 0) >= 1 else ""
    return f"{full}{line(one, '**')}\n-# {_mentioned(why)}"


def line(one: Explained, strong: str = "") -> str:
    """Return "Running at once · 1 of 4"; `strong` goes around the value."""
    value = one.used or (("yes" if one.value == "on" else "no") if one.setting == "blocked" else one.value)
    soon = f", some frees <t:{round(one.frees)}:R>" if one.frees is not None and one.taken else ""
    return f"{wording.title(one.setting)} · {strong}{quoted(value, 90)}{strong}{soon}"


def _limits(one: Explained) -> bool:
    return _shut(one) or bool(one.taken)


def _shut(one: Explained) -> bool:
    return one.setting in SHUT and one.rule is not None and one.value not in ("off", "not set")


def _mentioned(sentence: str) -> str:
    return _MARK.sub(lambda found: f"{_MENTIONS[found[1]]}{found[2]}>", quoted(sentence, 400))
