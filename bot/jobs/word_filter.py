"""Word filter: checks what members type against the forbidden words and patterns, and notes refusals for moderators.

It runs before admission on a read transaction, so that a long list does not block writers. Lists hold in age-restricted
channels and threads too (only the picture check is left out there); in direct messages with the bot only the operator's
list holds. One thread matches, and takes only a few requests of a member at a time: slow lists and prompts by one
author delay only each other. Only the member reads the refusal, so it may name the word that they typed.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor

from bot.domain.dto import Member
from bot.domain.errors import UserError
from bot.domain.incidents import IncidentKind
from bot.domain.texts import shorten
from bot.policy.limits import Limits
from bot.policy.rules import EVERYWHERE, EffectiveRules, Rule, resolve
from bot.policy.rules.explanations import member_texts
from bot.policy.rules.word_filter import Match, MatchBudget, find_match
from bot.store import NewJob, Store
from bot.store.fairness.ledger import Ledger, run_with_ledger
from bot.store.moderation import incidents

MAX_REQUESTS = 3  # requests of one member, matched or waiting
TOO_COMPLEX = (
    "This takes too long to check against the word list here: so many of its characters could mean several letters, "
    "or it is so long. Write it more plainly, or fewer prompts at once."
)
TOO_MANY_REQUESTS = (
    f"{MAX_REQUESTS} of your requests are being checked against the word list just now, the most at once. Try again "
    "soon."
)


class WordFilter:
    """Checks requests. `limits`: the defaults; `thread`: the thread that matches."""

    def __init__(
        self, store: Store, thread: Executor, *, limits: Limits, clock: Callable[[], float] = time.time
    ) -> None:
        self._store = store
        self._thread = thread
        self._limits = limits
        self._clock = clock
        self._running: Counter[str] = Counter()

    async def note_blocked_attempt(self, member: Member, prompt: str) -> None:
        """Note a blocked member's attempt, which was refused before the word filter ran."""
        effective_rules = await self._store.query(
            run_with_ledger, member, self._clock(), lambda ledger: resolve(ledger.load_rules(), member, self._limits)
        )
        if effective_rules.blocked:
            await self._note_incident(member, "blocked", shorten(prompt, 200))

    async def check_words(self, new_jobs: Sequence[NewJob], member: Member) -> None:
        """Check that no request contains a forbidden word or pattern. Raises `UserError` (422, 429)."""
        texts = tuple(dict.fromkeys(text for job in new_jobs for text in member_texts(job.prompt, job.task)))
        await self.check_texts(texts, member, member, new_jobs[0].prompt)

    async def check_texts(self, texts: Sequence[str], member: Member, ruled: Member, shown: str) -> None:
        """Check that what `member` typed has nothing that is forbidden to `ruled`. Raises `UserError` (422, 429).

        `ruled`: the member, or the author of the job that they change. `shown`: the text to note if they are blocked.
        """

        def resolve_rules(ledger: Ledger) -> tuple[list[Rule], EffectiveRules]:
            rules = ledger.load_rules()
            return rules, resolve(rules, ruled, self._limits)

        rules, effective_rules = await self._store.query(run_with_ledger, ruled, self._clock(), resolve_rules)
        if effective_rules.blocked:  # admission refuses it; here we only note it
            if ruled is member:
                await self._note_incident(member, "blocked", shorten(shown, 200))
            return
        if not effective_rules.words and not effective_rules.patterns:
            return
        match, text = await self.match_texts(texts, effective_rules, member)
        if match is not None:
            await self._note_incident(member, "word", f"{_entry_text(match)} in “{shorten(text, 300)}”")
            raise UserError(refusal_sentence(match, rules))

    async def match_texts(
        self, texts: Sequence[str], effective_rules: EffectiveRules, member: Member
    ) -> tuple[Match | None, str]:
        """Return the first match and its text; all texts share one budget.

        Matches on the filter's thread. Raises `UserError` (429) if a member has too many requests at once.
        """
        if self._running[member.id] >= MAX_REQUESTS:
            raise UserError(TOO_MANY_REQUESTS, 429)
        self._running[member.id] += 1
        matching = asyncio.get_running_loop().run_in_executor(self._thread, _first_match, texts, effective_rules)
        matching.add_done_callback(lambda _future: self._release_slot(member.id))
        return await asyncio.shield(matching)  # a cancelled caller does not stop the thread's work

    def _release_slot(self, member: str) -> None:
        self._running[member] -= 1
        if not self._running[member]:
            del self._running[member]

    async def _note_incident(self, member: Member, kind: IncidentKind, detail: str) -> None:
        row = (member.guild, kind, member.id, member.name, detail, self._clock())
        await self._store.write(incidents.write_incident, *row)


def _first_match(texts: Sequence[str], effective_rules: EffectiveRules) -> tuple[Match | None, str]:
    budget = MatchBudget()
    for text in texts:
        if match := find_match(text, effective_rules.words, effective_rules.patterns, budget):
            return match, text
    return None, ""


def refusal_sentence(match: Match, rules: Iterable[Rule]) -> str:
    """Say why a prompt is refused, and by whose list; a server's own list is named before the operator's."""
    if match.kind == "tangled":
        return TOO_COMPLEX
    setting = "words" if match.kind == "word" else "patterns"
    matching_rules = [rule for rule in rules if rule.setting == setting and match.entry in _list_entries(rule)]
    by_operator = all(rule.guild == EVERYWHERE or rule.scope == "operator" for rule in matching_rules)
    owner_part = "of this bot's operator" if by_operator and matching_rules else "of this server's admins"
    if match.kind == "word":
        return f"“{shorten(match.entry, 60)}” may not be in a prompt here: it is on the word list {owner_part}."
    return f"This prompt has something that a pattern {owner_part} does not allow."


def _list_entries(rule: Rule) -> Sequence[str]:
    return rule.value if isinstance(rule.value, tuple) else ()


def _entry_text(match: Match) -> str:
    return f"“{shorten(match.entry, 80)}”" if match.entry else "too many look-alike characters"
