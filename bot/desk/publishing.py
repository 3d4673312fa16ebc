"""Whether what was made before may be shown to a whole channel now: the rules of today hold, not those of that day.

A job that was asked for elsewhere went past the lists and the check of elsewhere, so only its own channel sees it
again. Knows terms and views; knows nothing of front ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from bot.rules import Terms
from bot.rules.words import found
from bot.views import Member, View
from engine.job import Recipe


async def publishable(view: View, member: Member, terms: Terms) -> bool:
    """True if everybody where `member` is may see what `view` has made. `terms` are theirs, there."""
    if view.private or (view.guild, view.channel) != (member.guild, member.channel) or terms.results == "private":
        return False
    if terms.check and not view.check and not member.age_restricted:
        return False  # made before the check was turned on
    if not terms.words and not terms.patterns:
        return True
    return not await asyncio.to_thread(_listed, view, terms)


def _listed(view: View, terms: Terms) -> bool:
    """A word or pattern of it is forbidden now."""
    return any(found(text, terms.words, terms.patterns) is not None for text in _texts(view))


def _texts(view: View) -> Iterable[str]:
    yield view.prompt
    if isinstance(view.recipe, Recipe):
        yield " ".join(concept.text for concept in view.recipe.concepts)
        if view.recipe.walk is not None and view.recipe.walk.to is not None:
            yield view.recipe.walk.to
