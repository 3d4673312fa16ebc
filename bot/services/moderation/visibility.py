"""Decides whether an older job may be shown to a whole channel now, under today's rules.

A job is shown again only in its own channel or private thread: elsewhere it passed another word filter and picture
check.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from bot.domain.dto import JobView, Member
from bot.policy.rules import EffectiveRules
from bot.policy.rules.word_filter import find_match
from engine.contract import Recipe


async def can_publish(view: JobView, member: Member, rules: EffectiveRules) -> bool:
    """Return whether everybody where `member` is may see the job. `rules`: the member's effective rules there."""
    is_elsewhere = (view.guild, view.channel, view.thread) != (member.guild, member.channel, member.thread)
    if view.is_private or is_elsewhere or rules.results == "private":
        return False
    if rules.check and not view.needs_check and not member.age_restricted:
        return False  # made before the check was turned on
    if not rules.words and not rules.patterns:
        return True
    return not await asyncio.to_thread(_has_forbidden_words, view, rules)


def _has_forbidden_words(view: JobView, rules: EffectiveRules) -> bool:
    """Return whether a word or pattern in the job is forbidden now."""
    return any(find_match(text, rules.words, rules.patterns) is not None for text in _job_texts(view))


def _job_texts(view: JobView) -> Iterable[str]:
    yield view.prompt
    if isinstance(view.task, Recipe):
        yield " ".join(concept.text for concept in view.task.concepts)
        if view.task.interpolation is not None and view.task.interpolation.end_prompt is not None:
            yield view.task.interpolation.end_prompt
