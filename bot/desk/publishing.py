"""Decides whether an older job may be shown to a whole channel now, under today's rules.

A job is shown again only in its own channel: elsewhere it passed another word filter and picture check.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from bot.rules import Terms
from bot.rules.words import found
from bot.views import Member, View
from engine.job import Recipe


async def publishable(view: View, member: Member, terms: Terms) -> bool:
    """Return whether everybody where `member` is may see the job. `terms`: the member's effective rules there."""
    if view.private or (view.guild, view.channel) != (member.guild, member.channel) or terms.results == "private":
        return False
    if terms.check and not view.check and not member.age_restricted:
        return False  # made before the check was turned on
    if not terms.words and not terms.patterns:
        return True
    return not await asyncio.to_thread(_listed, view, terms)


def _listed(view: View, terms: Terms) -> bool:
    """Return whether a word or pattern in the job is forbidden now."""
    return any(found(text, terms.words, terms.patterns) is not None for text in _texts(view))


def _texts(view: View) -> Iterable[str]:
    yield view.prompt
    if isinstance(view.recipe, Recipe):
        yield " ".join(concept.text for concept in view.recipe.concepts)
        if view.recipe.walk is not None and view.recipe.walk.to is not None:
            yield view.recipe.walk.to
