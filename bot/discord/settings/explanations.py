"""What holds for a member, in short lines for a phone: what limits them now, what rules set, and the defaults.

Pure: turns explanations into texts in Discord's markdown. Knows which settings a card names, and nothing of rules.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from bot.discord.settings import texts
from bot.domain.texts import escape_discord
from bot.policy.rules.explanations import Explanation

Section = tuple[str, list[str]]  # a heading, and its lines
NOW_HEADING = "Now"
RULES_HEADING = "Set by rules"
DEFAULT_HEADING = "By default"
STOP_SETTINGS = ("blocked", "closed")  # settings that stop everything
_PLACEHOLDER = re.compile(r"§(channel|role|user)([0-9]{1,20})§")
_MENTION_PREFIXES = {"channel": "<#", "role": "<@&", "user": "<@"}


def make_placeholder(kind: str, number: str) -> str:
    """Return a placeholder of a `channel`, `role` or `user` that survives escaping; `_insert_mentions` makes it a
    mention.
    """
    return f"§{kind}{number}§"


def build_sections(explanations: Sequence[Explanation]) -> list[Section]:
    """Return all settings under their headings, the fullest limit first; empty groups are left out."""
    limiting = sorted(
        filter(_is_limiting, explanations),
        key=lambda explanation: -1.0 if explanation.setting in STOP_SETTINGS else 1 - (explanation.used_share or 0),
    )
    by_rule = [
        explanation for explanation in explanations if explanation.rule is not None and explanation not in limiting
    ]
    default_names = (*texts.MEMBER_LIMITS, "blocked")
    by_default = [
        explanation
        for explanation in explanations
        if explanation.setting in default_names and explanation not in limiting and explanation not in by_rule
    ]
    groups = (
        (NOW_HEADING, map(format_entry, limiting)),
        (RULES_HEADING, map(format_entry, by_rule)),
        (DEFAULT_HEADING, (f"-# {format_line(explanation)}" for explanation in by_default)),
    )
    return [(heading, lines) for heading, entries in groups if (lines := list(entries))]


def format_entry(explanation: Explanation) -> str:
    """Return a setting's value, and below it why it holds."""
    reason = explanation.sentence.removeprefix(f"{explanation.setting} is {explanation.value}: ")
    stop_mark = "⛔ " if _is_stopping(explanation) or (explanation.used_share or 0) >= 1 else ""
    return f"{stop_mark}{format_line(explanation, '**')}\n-# {_insert_mentions(reason)}"


def format_line(explanation: Explanation, emphasis: str = "") -> str:
    """Return "Running at once · 1 of 4"; `emphasis` goes around the value."""
    value = explanation.used or (
        ("yes" if explanation.value == "on" else "no") if explanation.setting == "blocked" else explanation.value
    )
    frees_text = (
        f", some frees <t:{round(explanation.frees_at)}:R>"
        if explanation.frees_at is not None and explanation.used_share
        else ""
    )
    return f"{texts.setting_title(explanation.setting)} · {emphasis}{escape_discord(value, 90)}{emphasis}{frees_text}"


def _is_limiting(explanation: Explanation) -> bool:
    return _is_stopping(explanation) or bool(explanation.used_share)


def _is_stopping(explanation: Explanation) -> bool:
    return (
        explanation.setting in STOP_SETTINGS
        and explanation.rule is not None
        and explanation.value not in ("off", "not set")
    )


def _insert_mentions(sentence: str) -> str:
    return _PLACEHOLDER.sub(lambda match: f"{_MENTION_PREFIXES[match[1]]}{match[2]}>", escape_discord(sentence, 400))
