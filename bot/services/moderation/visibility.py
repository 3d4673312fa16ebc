"""Decides whether an older job may be shown to a whole channel now, under today's rules.

A job is shown again only in its own channel or private thread: elsewhere it passed another word filter and picture
check.
"""

from __future__ import annotations

from bot.domain.dto import JobView, Member
from bot.domain.errors import UserError
from bot.jobs.word_filter import WordFilter
from bot.policy.rules import EffectiveRules
from bot.policy.rules.explanations import member_texts


async def can_publish(view: JobView, member: Member, rules: EffectiveRules, word_filter: WordFilter) -> bool:
    """Return whether everybody where `member` is may see the job. `rules`: the member's effective rules there.

    A job whose texts cannot be checked now, since the member has too many requests at once, stays private.
    """
    is_elsewhere = (view.guild, view.channel, view.thread) != (member.guild, member.channel, member.thread)
    if view.is_private or is_elsewhere or rules.results == "private":
        return False
    if rules.check and not view.needs_check and not member.age_restricted:
        return False  # made before the check was turned on
    if not rules.words and not rules.patterns:
        return True
    try:
        match, _ = await word_filter.match_texts(member_texts(view.prompt, view.task), rules, member)
    except UserError:
        return False
    return match is None
