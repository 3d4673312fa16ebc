"""What members do in a party: open one, say something, vote. Its words change in `bot.services.parties.conductor`.

Callers check permissions first. Every refusal is a `UserError` with one sentence for the member.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Collection
from typing import Any, Literal

from bot.domain.dto import AcceptedJob, Destination, Member
from bot.domain.errors import UserError
from bot.domain.job_states import is_end
from bot.domain.party import PartyBoard, PartyPhrase
from bot.domain.texts import shorten
from bot.jobs.drawing import JobService
from bot.jobs.quota import check_action, refuse_if_closed_or_blocked
from bot.jobs.views import JobViews
from bot.jobs.word_filter import WordFilter
from bot.policy.party import PartyTalk, collect_opinions, list_live_phrases
from bot.policy.rules import EffectiveRules
from bot.prompt.concepts import clean_prompt
from bot.store import JobRecord, Store
from bot.store import parties as stored
from bot.store.parties import PartyRecord
from engine.contract import Recipe

Vote = Literal[1, -1]
MAX_INVITED = 50  # members
MAX_SAID = 200  # characters of a phrase
DEFAULT_MINUTES = 5
PARTY_STEPS = 250  # unless the prompt names another number: many, so that talk has time
ALREADY_OPEN = "There is a party here already: say something in it with `/say`."
NO_PARTY = "There is no party here. `/party` begins one."
OVER = "This party is over."
NOT_INVITED = "This party is for those whom its owner invited."
FULL = f"This party is full: {stored.MAX_MEMBERS} take part."
TOO_LONG_PARTY = "A party may last {} minutes here."
NO_PARTIES = "There are no parties here."
TOO_MANY_INVITED = f"A party can invite {MAX_INVITED} members; leave them out, and everybody here may take part."
PUBLIC_ONLY = "A party needs a picture that everybody here sees: choose public results in `/prefer set`."
ONE_PICTURE_JOB = "A party has one prompt: leave out braces, --repeat and --walk."
NOTHING_SAID = "Say what the picture should show, in a few words."
WEIGHTS_BY_VOTE = "Leave out weights (::) and flags (--): in a party, votes are the weights."
PHRASE_GONE = "Nobody stands for this phrase any more."


class PartyService:
    """`effective_rules`: of a member where they are."""

    def __init__(
        self,
        store: Store,
        jobs: JobService,
        job_views: JobViews,
        word_filter: WordFilter,
        effective_rules: Callable[[Member], Awaitable[EffectiveRules]],
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._jobs = jobs
        self._job_views = job_views
        self._word_filter = word_filter
        self._effective_rules = effective_rules
        self._clock = clock

    async def open_party(
        self,
        prompt: str,
        member: Member,
        destination: Destination,
        *,
        place: str,
        minutes: int | None = None,
        invited: Collection[str] = (),
        key: str,
    ) -> list[AcceptedJob]:
        """Admit the picture of a party and open the party around it. `place`: the channel or thread.

        `invited`: ids of members; empty: everybody who sees the picture may take part.
        """
        rules = await self._effective_rules(member)
        minutes = self._check_minutes(minutes, rules)
        if len(invited) > MAX_INVITED:
            raise UserError(TOO_MANY_INVITED)
        if await self._store.query(stored.find_open_party, place) is not None:
            raise UserError(ALREADY_OPEN)
        options: dict[str, Any] = {} if "--steps" in prompt else {"steps": min(PARTY_STEPS, rules.steps)}
        if "--evaluations" not in prompt and "--draft" not in prompt:  # it takes its time anyway, and follows the talk
            options["evaluations"] = rules.evaluations if rules.evaluations < PARTY_STEPS else "all"
        accepted_jobs = await self._jobs.imagine(prompt, member, destination, key=key, **options)
        problem = await self._open_around(accepted_jobs, place, minutes, {*invited, member.id} if invited else ())
        if problem:
            for accepted_job in accepted_jobs:
                await self._jobs.cancel(accepted_job.job, member)
            raise UserError(problem)
        return accepted_jobs

    def _check_minutes(self, minutes: int | None, rules: EffectiveRules) -> int:
        longest = rules.party
        if longest < 1:
            raise UserError(NO_PARTIES, 403)
        minutes = min(DEFAULT_MINUTES, longest) if minutes is None else minutes
        if not 1 <= minutes <= longest:
            raise UserError(TOO_LONG_PARTY.format("1" if longest == 1 else f"1 to {longest}"))
        return minutes

    async def _open_around(
        self, accepted_jobs: list[AcceptedJob], place: str, minutes: int, invited: Collection[str]
    ) -> str:
        """Open the party around an admitted job. Return why that cannot be, else an empty string."""
        if len(accepted_jobs) != 1:
            return ONE_PICTURE_JOB
        (accepted_job,) = accepted_jobs
        record = await self._job_views.load_record(accepted_job.job)
        if not isinstance(record.task, Recipe) or record.task.interpolation is not None:
            return ONE_PICTURE_JOB
        if accepted_job.is_private:
            return PUBLIC_ONLY
        if not await self._store.write(stored.open_party, accepted_job.job, place, minutes, invited):
            return ALREADY_OPEN
        return ""

    async def find_job(self, place: str) -> str:
        """Return the job of the party in a channel or thread."""
        party = await self._store.query(stored.find_open_party, place)
        if party is None:
            raise UserError(NO_PARTY, 404)
        return party.job

    async def join(self, job: str, member: Member) -> None:
        """Let the member take part, if they may and do not yet."""
        await self._enter(job, member)

    async def say(self, job: str, words: str, member: Member) -> str:
        """Let the member's phrase be these words, in place of their earlier ones. Return a sentence for them."""
        text = _clean_phrase(words)
        record = await self._enter(job, member)
        for ruled in (member,) if member.id == record.member else (member, record.author):
            await self._word_filter.check_texts((text,), member, ruled, text)
        await self._store.write(stored.say, job, member.id, text)
        return f"The picture hears “{shorten(text, 100)}” at its next change of words; votes give it weight."

    async def vote(self, job: str, phrase: int | None, value: Vote, member: Member) -> int:
        """Vote on a phrase, by default the newest, or take the same vote back. Return the vote that holds now."""
        await self._enter(job, member)
        number = phrase if phrase is not None else await self._store.query(stored.find_newest_phrase, job)
        held = None if number is None else await self._store.write(stored.toggle_vote, job, number, member.id, value)
        if held is None:
            raise UserError(PHRASE_GONE, 404)
        return held

    async def is_party(self, job: str) -> bool:
        """Return whether the job is the picture of a party that is going on."""
        party = await self._store.query(stored.find_party, job)
        return party is not None and party.is_open

    async def load_board(self, job: str) -> PartyBoard | None:
        """Return what is said in the party around a job; None if there is none."""
        party = await self._store.query(stored.find_party, job)
        if party is None:
            return None
        talk = await self._store.query(stored.load_talk, job)
        names = await self._store.query(stored.list_member_names, job)
        return PartyBoard(job, party.ends, party.is_open, _count_votes(talk), names)

    async def _enter(self, job: str, member: Member) -> JobRecord:
        """Let the member take part. Raises `UserError` if they may not, or the party is over."""
        party = await self._store.query(stored.find_party, job)
        record = await self._job_views.load_record(job)
        if party is None or not party.is_open or is_end(record.state):
            raise UserError(NO_PARTY if party is None else OVER, 404)
        _check_invited(party, member)
        rules = await self._effective_rules(member)
        refuse_if_closed_or_blocked(rules)
        check_action(rules, "party")
        if not await self._store.write(stored.join_party, job, member, self._clock()):
            raise UserError(FULL)
        return record


def _check_invited(party: PartyRecord, member: Member) -> None:
    if party.invited and member.id not in party.invited:
        raise UserError(NOT_INVITED, 403)


def _clean_phrase(words: str) -> str:
    """Return what a member says on one line. Raises `UserError` for what is no phrase."""
    text = clean_prompt(words[: 4 * MAX_SAID]).strip()
    if not text:
        raise UserError(NOTHING_SAID)
    if "::" in text or "--" in text or "—" in text:
        raise UserError(WEIGHTS_BY_VOTE)
    if len(text) > MAX_SAID:
        raise UserError(f"A phrase may have {MAX_SAID} characters; this one has {len(text)}.")
    return text


def _count_votes(talk: PartyTalk) -> tuple[PartyPhrase, ...]:
    """Return each live phrase with its votes."""
    opinions = collect_opinions(talk)
    counted: list[PartyPhrase] = []
    for phrase in list_live_phrases(talk):
        values = [value for (number, _), value in opinions.items() if number == phrase.number]
        votes_for = sum(value > 0 for value in values)
        counted.append(PartyPhrase(phrase.number, phrase.text, phrase.member_name, votes_for, len(values) - votes_for))
    return tuple(counted)
