"""Word filter: checks what members type against the forbidden words and patterns, and notes refusals for moderators.

It runs before admission on a read transaction, so that a long list does not block writers. Lists hold in age-restricted
channels and threads too (only the picture check is left out there); in direct messages with the bot only the operator's
list holds. One thread matches, with a few requests of a member at a time: slow lists and prompts by one author delay
only each other. The sentence is for the member alone, so it may name the word that they typed.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor

from bot.incidents import Kind
from bot.limits import Limits
from bot.refused import Refused
from bot.rules import EVERYWHERE, Rule, Terms, resolve
from bot.rules.effort import Effort
from bot.rules.words import Match, found
from bot.sentences import shortened
from bot.store import Draft, Store, incidents
from bot.store.ledger import Ledger, look
from bot.views import Member
from engine.job import Recipe

AT_ONCE = 3  # requests of one member that are matched or wait
TANGLED = (
    "This takes too long to check against the word list here: so many of its characters could mean several letters, "
    "or it is so long. Write it more plainly, or fewer prompts at once."
)
BUSY = f"{AT_ONCE} of your requests are being checked against the word list just now, the most at once. Try again soon."


class Screening:
    """Checks requests. `limits`: the defaults; `thread`: the thread that matches."""

    def __init__(
        self, store: Store, thread: Executor, *, limits: Limits, clock: Callable[[], float] = time.time
    ) -> None:
        self._store, self._thread, self._limits, self._clock = store, thread, limits, clock
        self._reading: Counter[str] = Counter()

    async def turned_away(self, member: Member, prompt: str) -> None:
        """Note a blocked member's attempt that was refused before its text was checked."""
        held = await self._store.ask(
            look, member, self._clock(), lambda ledger: resolve(ledger.rules(), member, self._limits)
        )  # fmt: skip
        if held.blocked:
            await self._note(member, "blocked", shortened(prompt, 200))

    async def check(self, drafts: Sequence[Draft], member: Member) -> None:
        """Check that no request contains a forbidden word or pattern. Raises `Refused` (422, 429)."""

        def terms(ledger: Ledger) -> tuple[list[Rule], Terms]:
            rules = ledger.rules()
            return rules, resolve(rules, member, self._limits)

        rules, held = await self._store.ask(look, member, self._clock(), terms)
        if held.blocked:  # admission refuses it; here it is only noted
            await self._note(member, "blocked", shortened(drafts[0].prompt, 200))
            return
        if not held.words and not held.patterns:
            return
        texts = tuple(dict.fromkeys(text for draft in drafts for text in typed(draft)))
        match, text = await self._read(texts, held, member)
        if match is not None:
            await self._note(member, "word", f"{_entry(match)} in “{shortened(text, 300)}”")
            raise Refused(sentence(match, rules))

    async def _read(self, texts: Sequence[str], terms: Terms, member: Member) -> tuple[Match | None, str]:
        """Match on the filter's thread. Raises `Refused` (429) if a member has too many requests at once."""
        if self._reading[member.id] >= AT_ONCE:
            raise Refused(BUSY, 429)
        self._reading[member.id] += 1
        reading = asyncio.get_running_loop().run_in_executor(self._thread, _first, texts, terms)
        reading.add_done_callback(lambda _done: self._have_read(member.id))
        return await asyncio.shield(reading)  # a cancelled caller does not stop the thread's work

    def _have_read(self, member: str) -> None:
        self._reading[member] -= 1
        if not self._reading[member]:
            del self._reading[member]

    async def _note(self, member: Member, kind: Kind, said: str) -> None:
        noted = (member.guild, kind, member.id, member.name, said, self._clock())
        await self._store.write(incidents.note, *noted)


def typed(draft: Draft) -> Iterable[str]:
    """Yield every text of a request that a member wrote: now, or for its parent."""
    yield draft.prompt
    if isinstance(draft.task, Recipe):
        yield " ".join(concept.text for concept in draft.task.concepts)
        yield draft.task.negative
        if draft.task.walk is not None and draft.task.walk.to is not None:
            yield draft.task.walk.to


def _first(texts: Sequence[str], terms: Terms) -> tuple[Match | None, str]:
    effort = Effort()
    for text in texts:
        if match := found(text, terms.words, terms.patterns, effort):
            return match, text
    return None, ""


def sentence(match: Match, rules: Iterable[Rule]) -> str:
    """Say why a prompt is refused, and by whose list; a server's own list is named before the operator's."""
    if match.kind == "tangled":
        return TANGLED
    setting = "words" if match.kind == "word" else "patterns"
    listing = [one for one in rules if one.setting == setting and match.entry in _listed(one)]
    ours = all(one.guild == EVERYWHERE or one.scope == "house" for one in listing)
    whose = "of this bot's operator" if ours and listing else "of this server's admins"
    if match.kind == "word":
        return f"“{shortened(match.entry, 60)}” may not be in a prompt here: it is on the word list {whose}."
    return f"This prompt has something that a pattern {whose} does not allow."


def _listed(rule: Rule) -> Sequence[str]:
    return rule.value if isinstance(rule.value, tuple) else ()


def _entry(match: Match) -> str:
    return f"“{shortened(match.entry, 80)}”" if match.entry else "too many look-alike characters"
