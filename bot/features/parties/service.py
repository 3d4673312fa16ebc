"""Parties: what members do in them, and how their words and votes change the picture.

Callers check permissions first. Every refusal is a `UserError` with one sentence for the member.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from cachetools import LRUCache

from bot.domain.concurrency import run_periodically
from bot.domain.dto import AcceptedJob, Destination, Member
from bot.domain.errors import UserError
from bot.domain.feature import RunningFeature
from bot.domain.job_states import is_end
from bot.domain.steering import SteeringRequest
from bot.domain.texts import shorten
from bot.features.parties import store as stored
from bot.features.parties.rules import (
    PartyBoard,
    PartyPhrase,
    PartyTalk,
    Phrase,
    WordsChange,
    choose_words,
    collect_opinions,
    find_change_interval,
    find_fade_steps,
    find_pace,
    is_worth_a_change,
    list_live_phrases,
)
from bot.features.parties.store import PartyRecord
from bot.jobs.active_jobs import ActiveJob, ActiveJobs
from bot.jobs.control import JobControl
from bot.jobs.drawing import JobService
from bot.jobs.quota import check_action
from bot.jobs.steering import SteeringService, presume_recipe
from bot.jobs.views import JobViews
from bot.jobs.word_filter import WordFilter
from bot.policy.rules import EffectiveRules
from bot.prompt.concepts import clean_prompt
from bot.store import JobRecord, Store
from bot.store.transitions.amendments import list_amendments
from engine.contract import Concept, Recipe, count_evaluations, settle_fades

if TYPE_CHECKING:
    from bot.app.wiring import App

log = logging.getLogger(__name__)

Vote = Literal[1, -1]
ROUND_SECONDS = 1.0
PACE_SECONDS = 5.0  # a pace is sent again after so long: its message may be lost, and steps may be late
MIN_PACE = 0.02  # seconds from evaluation to evaluation: a shorter pace slows nothing
MAX_INVITED = 50  # members
MAX_SAID = 200  # characters of a phrase
MAX_KNOWN_JOBS = 4096
PARTY_OPENS_WITHIN = 5.0  # seconds: a party opens after its job is admitted, which may run by then
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
FEWER_WORDS = "what has fewer votes goes"
PHRASE_GONE = "Nobody stands for this phrase any more."


class PartyService:
    """`effective_rules`: of a member where they are."""

    def __init__(
        self,
        store: Store,
        jobs: JobService,
        job_control: JobControl,
        job_views: JobViews,
        word_filter: WordFilter,
        effective_rules: Callable[[Member], Awaitable[EffectiveRules]],
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._jobs = jobs
        self._job_control = job_control
        self._job_views = job_views
        self._word_filter = word_filter
        self._effective_rules = effective_rules
        self._clock = clock
        self._is_party = LRUCache[str, bool](MAX_KNOWN_JOBS)

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
                await self._job_control.cancel(accepted_job.job, member)
            raise UserError(problem)
        return accepted_jobs

    def _check_minutes(self, minutes: int | None, rules: EffectiveRules) -> int:
        longest = rules.added["party"]
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

    async def find_board(self, job: str, created: float, now: float) -> PartyBoard | None:
        """Return what `load_board` does, without asking for jobs that have been without a party for a while."""
        known = self._is_party.get(job)
        if known is None or (not known and now - created < PARTY_OPENS_WITHIN):
            known = self._is_party[job] = await self.is_party(job)
        return await self.load_board(job) if known else None

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


@dataclass
class _SentPace:
    epoch: int
    sent_at: float


class PartyConductor:
    """Slows each picture to last as long as its party, and lets its words follow the votes. Run `run` as a task.

    It keeps nothing that a restart would lose: when a party ends and when its words last changed are in SQL, and the
    pace is sent anew to each worker that takes the picture. `effective_rules`: of a member where they are.
    """

    def __init__(
        self,
        store: Store,
        active_jobs: ActiveJobs,
        steering: SteeringService,
        job_control: JobControl,
        effective_rules: Callable[[Member], Awaitable[EffectiveRules]],
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._active_jobs = active_jobs
        self._steering = steering
        self._job_control = job_control
        self._effective_rules = effective_rules
        self._clock = clock
        self._paces: dict[str, _SentPace] = {}

    async def run(self) -> None:
        """Conduct until cancelled. Retry after an outage of the database."""
        await run_periodically(self.run_round, ROUND_SECONDS, "parties", log)

    async def run_round(self) -> None:
        """Look after each open party once."""
        open_parties = await self._store.query(stored.list_open_parties)
        self._paces = {party.job: self._paces[party.job] for party in open_parties if party.job in self._paces}
        for party in open_parties:
            try:
                await self._conduct(party)
            except UserError as error:  # of one party: the others go on
                log.info("the party around job %s: %s", party.job, error.sentence)
            except OSError:
                raise
            except Exception:
                log.exception("the party around job %s was not looked after", party.job)

    async def _conduct(self, party: PartyRecord) -> None:
        record = await self._store.get_job(party.job)
        if record is None or is_end(record.state):
            await self._store.write(stored.close_party, party.job)
            return
        active_job = self._active_jobs.by_id.get(party.job)
        if record.state != "running" or active_job is None or not isinstance(record.task, Recipe):
            return
        now = self._clock()
        ends = now + 60.0 * party.minutes if party.ends is None else party.ends
        if party.ends is None:
            await self._store.write(stored.set_end, party.job, ends)
        recipe = record.task
        step = max(record.step, active_job.step)
        seconds_left = max(0.0, ends - now)
        pace = find_pace(seconds_left, count_evaluations(recipe, step, recipe.end_step))
        await self._send_pace(record, active_job, pace, now)
        seconds_per_step = find_pace(seconds_left, recipe.end_step - step)
        await self._change_words(party, record, recipe, seconds_per_step, ends, now)

    async def _send_pace(self, record: JobRecord, active_job: ActiveJob, pace: float, now: float) -> None:
        """Send the pace to each new worker at once, then now and then."""
        sent = self._paces.get(record.id)
        if sent is not None and sent.epoch == active_job.epoch and now - sent.sent_at < PACE_SECONDS:
            return
        await self._job_control.set_pace(record, pace if pace >= MIN_PACE else 0.0)
        self._paces[record.id] = _SentPace(active_job.epoch, now)

    async def _change_words(
        self, party: PartyRecord, record: JobRecord, recipe: Recipe, seconds_per_step: float, ends: float, now: float
    ) -> None:
        amendments = await self._store.query(list_amendments, party.job)
        accepted = [each for each in amendments if each.state != "refused"]
        interval = find_change_interval(max(0.0, ends - now), len(accepted))
        if now - party.changed < interval:
            return
        talk = await self._store.query(stored.load_talk, party.job)
        change = choose_words(recipe.concepts, talk)
        if await self._withdraw_blocked(record, change.phrases):
            return  # the next round chooses among the others
        old = settle_fades(presume_recipe(recipe, amendments, record.step)).concepts
        if not is_worth_a_change(old, change.concepts):
            return
        await self._store.write(
            stored.record_change, party.job, [phrase.member for phrase in change.phrases], now
        )  # first: what is refused is not asked for again at once
        speaker, label = _find_speaker(record, old, change)
        request = SteeringRequest(
            concepts=change.concepts,
            is_mixed=all(concept.weight > 0 for concept in change.concepts),
            fade_steps=find_fade_steps(interval, seconds_per_step),
            label=label,
        )
        await self._steering.amend(party.job, request, speaker, is_joined=True)

    async def _withdraw_blocked(self, record: JobRecord, phrases: Sequence[Phrase]) -> bool:
        """Withdraw the phrases of members who may not take part any more. Return whether there were any."""
        found = False
        for phrase in phrases:
            rules = await self._effective_rules(_make_speaker(record, phrase))
            if rules.blocked or not rules.allows("commands", "party"):
                await self._store.write(stored.withdraw, record.id, phrase.member)
                found = True
        return found


def _find_speaker(record: JobRecord, old: Sequence[Concept], change: WordsChange) -> tuple[Member, str]:
    """Return the member whose phrase gains most by a change, and the phrase; the owner if none does."""
    old_weights, weights = ({concept.text: concept.weight for concept in each} for each in (old, change.concepts))
    gains = {phrase: weights.get(phrase.text, 0.0) - old_weights.get(phrase.text, 0.0) for phrase in change.phrases}
    best = max(gains, key=lambda phrase: (gains[phrase], -phrase.number), default=None)
    if best is None or gains[best] <= 0:
        return record.author, FEWER_WORDS
    return _make_speaker(record, best), best.text


def _make_speaker(record: JobRecord, phrase: Phrase) -> Member:
    """Return who said a phrase. Nobody knows the roles of one who does not act now."""
    return replace(record.author, id=phrase.member, name=phrase.member_name)


@asynccontextmanager
async def open_service(app: App) -> AsyncGenerator[RunningFeature]:
    """Open the parties over the application, with the task that conducts them."""
    store = app.store
    services = app.services
    clock = app.core.clock
    rules = services.rule_admin.effective_rules
    control = services.job_control
    parties = PartyService(
        store, services.jobs, control, services.job_views, services.get(WordFilter), rules, clock=clock
    )
    conductor = PartyConductor(store, app.queue.active_jobs, services.steering, control, rules, clock=clock)
    yield RunningFeature(parties, {"parties": conductor.run})
