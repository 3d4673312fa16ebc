"""Conducts the open parties: slows each picture to last as long as its party, and lets its words follow the votes.

It keeps nothing that a restart would lose: when a party ends and when its words last changed are in SQL, and the pace
is sent anew to each worker that takes the picture.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

from bot.domain.dto import Member
from bot.domain.errors import UserError
from bot.domain.job_states import is_end
from bot.domain.periodic import run_periodically
from bot.domain.steering import SteeringRequest
from bot.jobs.active_jobs import ActiveJob, ActiveJobs
from bot.jobs.control import JobControl
from bot.policy.party import (
    Phrase,
    WordsChange,
    choose_words,
    find_change_interval,
    find_fade_steps,
    find_pace,
    is_worth_a_change,
)
from bot.policy.rules import EffectiveRules
from bot.services.steering.steering_check import presume_recipe
from bot.services.steering.steering_service import SteeringService
from bot.store import JobRecord, Store
from bot.store import parties as stored
from bot.store.parties import PartyRecord
from bot.store.transitions.amendments import list_amendments
from engine.contract import Concept, Recipe, count_evaluations, settle_fades

log = logging.getLogger(__name__)

ROUND_SECONDS = 1.0
PACE_SECONDS = 5.0  # a pace is sent again after so long: its message may be lost, and steps may be late
FEWER_WORDS = "what has fewer votes goes"
MIN_PACE = 0.02  # seconds from evaluation to evaluation: a shorter pace slows nothing


@dataclass
class _SentPace:
    epoch: int
    sent_at: float


class PartyConductor:
    """Run `run` as a task. `effective_rules`: of a member where they are."""

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
