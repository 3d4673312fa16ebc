"""Steering: changes of a running job are asked for, sent, answered by its worker, and held by the finished recipe."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace as replace_fields
from types import SimpleNamespace
from typing import Any, cast

import pytest
import pytest_asyncio
from msgspec.structs import replace

from bot.domain.dto import Member
from bot.domain.errors import UserError
from bot.domain.events import JobSteered
from bot.domain.steering import SteeringRequest
from bot.jobs.quota import check_task
from bot.jobs.steering import require_steerable
from bot.policy.limits import Limits
from bot.policy.rules import resolve
from bot.services.data_deletion import DataDeletion
from bot.store.members import export
from bot.store.transitions.amendments import check_held
from engine.contract import (
    AmendJob,
    Amendment,
    Concept,
    DropImages,
    JobAmended,
    JobFinished,
    JobStarted,
    Recipe,
    SetConcepts,
    SetGuidance,
    SplitImage,
    UpscaleTask,
)
from shared.active_jobs import is_claimed

EPOCH = 10
BOB = Member("local:bob", "Bob", "local")
OWNER = Member("local:olga", "Olga", "local", is_owner=True, is_admin=True)


class SteeredJob:
    """A running job that a test's worker holds, and the changes that the worker has received."""

    def __init__(self, app: Any, worker: Any, job: Any) -> None:
        self.app = app
        self.worker = worker
        self.job = job
        self.received: list[AmendJob] = []

    async def amend(self, member: Member, key: str | None = None, **request: Any) -> list[Any]:
        answer = await self.app.services.steering.amend(self.job.id, SteeringRequest(**request), member, key)
        assert answer.outlook == await self.app.services.steering.load_outlook(self.job.id, member)
        return answer.amendments

    async def answer(self, number: int, step: int | None, *, epoch: int = EPOCH, reason: str = "") -> None:
        answer = JobAmended(job=self.job.id, epoch=epoch, number=number, step=step, reason=reason)
        await self.worker.publish_result(answer)

    async def finish(self, *images: int, amendments: tuple[Amendment, ...], epoch: int = EPOCH) -> None:
        for image in images:
            await self.worker.publish_picture(self.job, epoch, image)
            await self.worker.publish_ladder(self.job, epoch, image)
        finished = JobFinished(
            job=self.job.id, epoch=epoch, cost=1.0, seconds=1.0, ms_per_step=1.0, amendments=amendments
        )
        await self.worker.publish_result(finished)

    async def load_record(self) -> Any:
        return await self.app.store.get_job(self.job.id)

    async def is_finished(self) -> bool:
        return (await self.load_record()).state == "finished"

    async def list_states(self, member: Member) -> list[tuple[int, str, int | None]]:
        views = await self.app.services.steering.list_amendments(self.job.id, member)
        return [(view.number, view.state, view.step) for view in views]

    async def listen(self) -> None:
        async for message in self.worker.bus.watch_amendments(["default"]):
            self.received.append(message)


@pytest_asyncio.fixture
async def open_steered(harness: Any, wait_until: Any, ann: Member, destination: Any) -> AsyncIterator[Any]:
    listeners: list[asyncio.Task[None]] = []

    async def make(text: str = "fox --count 2") -> SteeredJob:
        app = await harness.open_app()
        worker = await harness.make_worker("hand")
        await worker.announce()
        await wait_until(lambda: app.services.live_workers())
        (accepted,) = await app.services.jobs.imagine(text, ann, destination)
        steered = SteeredJob(app, worker, await worker.take_job())
        listeners.append(asyncio.create_task(steered.listen()))
        await worker.publish_result(JobStarted(job=accepted.job, epoch=EPOCH, worker="hand"))
        await wait_until(lambda: is_claimed(app, accepted.job))
        return steered

    yield make
    for listener in listeners:
        listener.cancel()
        await asyncio.wait([listener])


@asynccontextmanager
async def collect_steered(app: Any, job: str) -> AsyncIterator[list[JobSteered]]:
    events: list[JobSteered] = []

    async def collect() -> None:
        async with app.feed.subscribe(job, with_previews=False) as subscription:
            async for event in subscription:
                if isinstance(event, JobSteered):
                    events.append(event)

    task = asyncio.create_task(collect())
    await asyncio.sleep(0)
    try:
        yield events
    finally:
        task.cancel()
        await asyncio.wait([task])


@pytest.mark.asyncio
async def test_changes_are_sent_answered_and_held_by_the_finished_recipe(
    open_steered: Any, wait_until: Any, ann: Member
) -> None:
    steered = await open_steered()
    before = await steered.load_record()
    async with collect_steered(steered.app, steered.job.id) as events:
        views = await steered.amend(ann, say="blue", guidance=6.0, keep=(1,))
        assert [(view.number, view.state, view.text) for view in views] == [
            (1, "waiting", "keeps image 2"),
            (2, "waiting", "fox, blue"),
            (3, "waiting", "guidance 6 from 30% to 80% of the steps" if before.task.guidance_start else "guidance 6"),
        ]
        await wait_until(lambda: steered.received)
        assert [type(each.change) for each in steered.received[0].requests] == [DropImages, SetConcepts, SetGuidance]
        assert steered.received[0].epoch == EPOCH
        for number in (1, 2, 3):
            await steered.answer(number, 5)
        await wait_until(lambda: len(events) == 6)
    record = await steered.load_record()
    assert [(each.number, each.step) for each in record.task.amendments] == [(1, 5), (2, 5), (3, 5)]
    assert await steered.list_states(ann) == [(1, "made", 5), (2, "made", 5), (3, "made", 5)]
    assert record.rows == before.rows // 2
    assert record.cost < before.cost
    assert events[-1].recipe == record.task
    await steered.finish(1, amendments=record.task.amendments)

    async def is_finished() -> bool:
        return (await steered.load_record()).state == "finished"

    await wait_until(is_finished)
    view = await steered.app.services.job_views.load_view(steered.job.id)
    assert [picture.index for picture in view.pictures] == [1]
    assert view.task == record.task
    captions = await steered.app.services.gallery.list_captions(steered.job.id)
    assert [(each.step, each.text, each.speaker) for each in captions[:2]] == [
        (5, "keeps image 2", ann.name),
        (5, "fox, blue", ann.name),
    ]


@pytest.mark.asyncio
async def test_a_steered_job_is_reproduced_with_its_changes_and_can_be_steered_further(
    open_steered: Any, wait_until: Any, ann: Member, destination: Any
) -> None:
    steered = await open_steered()
    await steered.amend(ann, say="blue", keep=(1,))
    await wait_until(lambda: steered.received)
    amendments = tuple(Amendment(each.number, 5, each.change) for each in steered.received[0].requests)
    await steered.finish(1, amendments=amendments)
    await wait_until(steered.is_finished)
    services = steered.app.services
    accepted = await services.variations.reproduce(steered.job.id, BOB, destination)
    again = SteeredJob(steered.app, steered.worker, await steered.worker.take_job())
    assert (again.job.id, again.job.task.amendments) == (accepted.job, amendments)
    await again.worker.publish_result(JobStarted(job=again.job.id, epoch=EPOCH, worker="hand"))
    await wait_until(lambda: is_claimed(steered.app, again.job.id))
    (view,) = await again.amend(BOB, say="old")
    assert (view.number, view.text) == (3, "fox, blue, old")
    held = (*amendments, Amendment(3, 9, SetConcepts((Concept("fox, blue, old"),))))
    await again.finish(1, amendments=held)
    await wait_until(again.is_finished)
    assert (await again.load_record()).task.amendments == held
    varied = await services.variations.vary(again.job.id, 1, BOB, destination)
    variation = await services.job_views.load_view(varied.job)
    assert (variation.prompt, variation.task.amendments) == ("fox, blue, old", ())
    third = await services.variations.reproduce(steered.job.id, BOB, destination)
    captions = await services.gallery.list_captions(third.job)
    assert [caption.line for caption in captions] == ["drops image 1", "fox, blue"], "nobody said it in this job"


@pytest.mark.asyncio
async def test_the_finished_report_is_the_truth(open_steered: Any, wait_until: Any, ann: Member) -> None:
    """An answer that never came is made up for, what did not hold is refused, and a split adds a picture."""
    steered = await open_steered("fox --count 1")
    await steered.amend(ann, split=(0, 2))
    await steered.amend(ann, say="blue")
    await steered.amend(ann, guidance=9.0)
    await wait_until(lambda: steered.received and len(steered.received[-1].requests) == 3)
    split = steered.received[-1].requests[0].change
    assert isinstance(split, SplitImage)
    assert split.places == (1,)
    await steered.answer(3, 7, epoch=EPOCH - 1)  # stale
    await steered.finish(0, 1, amendments=(Amendment(1, 4, split),))

    async def is_finished() -> bool:
        return (await steered.load_record()).state == "finished"

    await wait_until(is_finished)
    assert await steered.list_states(ann) == [(1, "made", 4), (2, "refused", None), (3, "refused", None)]
    view = await steered.app.services.job_views.load_view(steered.job.id)
    assert [picture.index for picture in view.pictures] == [0, 1]
    with pytest.raises(UserError, match="Too late: it has finished already"):
        await steered.amend(ann, say="late")


@pytest.mark.slow
@pytest.mark.asyncio
async def test_pictures_without_an_answered_change_are_drawn_anew(
    open_steered: Any, wait_until: Any, ann: Member
) -> None:
    """A broker that lost its store, and a repeated message: a worker draws the job as it had been before."""
    steered = await open_steered("fox --count 1")
    (asked,) = await steered.amend(ann, guidance=9.0)
    await wait_until(lambda: bool(steered.received))
    await steered.answer(asked.number, 7)

    async def is_made() -> bool:
        return await steered.list_states(ann) == [(1, "made", 7)]

    await wait_until(is_made)
    await steered.worker.publish_result(JobStarted(job=steered.job.id, epoch=EPOCH + 1, worker="hand"))
    await steered.finish(0, amendments=(), epoch=EPOCH + 1)
    while (job := await steered.worker.take_job()).attempt == 1:
        pass  # the broker brings it again, until the bot has removed it
    assert (job.id, job.attempt, [each.step for each in job.task.amendments]) == (steered.job.id, 2, [7])
    assert (await steered.app.services.job_views.load_view(job.id)).pictures == ()
    steered.job = job
    await steered.finish(0, amendments=job.task.amendments, epoch=EPOCH + 2)
    await wait_until(steered.is_finished)
    assert await is_made()


@pytest.mark.slow
@pytest.mark.asyncio
async def test_changes_are_repeated_to_the_next_claim_and_asked_for_once_by_a_key(
    open_steered: Any, wait_until: Any, ann: Member
) -> None:
    steered = await open_steered()
    first = await steered.amend(ann, "key", say="blue")
    assert await steered.amend(ann, "key", say="blue") == first
    await wait_until(lambda: len(steered.received) >= 2)  # repeated while nobody answers
    await steered.worker.publish_result(JobStarted(job=steered.job.id, epoch=EPOCH + 1, worker="hand"))
    await wait_until(lambda: steered.received[-1].epoch == EPOCH + 1)
    assert [each.number for each in steered.received[-1].requests] == [1]
    for _ in range(2):
        await steered.answer(1, 3, epoch=EPOCH + 1)
    await steered.answer(1, None, epoch=EPOCH + 1, reason="Later.")

    async def is_made() -> bool:
        return await steered.list_states(ann) == [(1, "made", 3)]

    await wait_until(is_made)
    assert len((await steered.load_record()).task.amendments) == 1


@pytest.mark.asyncio
async def test_only_the_author_and_those_of_a_party_steer(open_steered: Any, ann: Member) -> None:
    steered = await open_steered()
    with pytest.raises(UserError, match=r"Only .* may steer this picture while it develops") as refusal:
        await steered.amend(BOB, say="blue")
    assert refusal.value.status == 403
    request = SteeringRequest(say="terrier", say_weight=1.0)
    answer = await steered.app.services.steering.amend(steered.job.id, request, BOB, is_joined=True)
    assert not answer.outlook.obstacle
    (view,) = answer.amendments
    assert (view.member_id, view.text) == (BOB.id, "fox 0.5, terrier 0.5")
    with pytest.raises(UserError, match="Nothing in this changes the picture"):
        await steered.amend(ann)
    with pytest.raises(UserError, match="Image 3 is not developing"):
        await steered.amend(ann, keep=(2,))
    with pytest.raises(UserError, match="There is no such job"):
        await steered.app.services.steering.amend("0" * 26, request, ann)


async def set_rules(app: Any, *rules: tuple[str, str, str, str]) -> None:
    for scope, subject, setting, text in rules:
        await app.services.rule_admin.set_rule(OWNER, scope, subject, setting, text)


@pytest.mark.asyncio
async def test_words_pass_the_filter_and_the_rules_of_speaker_and_author(open_steered: Any, ann: Member) -> None:
    steered = await open_steered()

    async def join(**request: Any) -> Any:
        amend = steered.app.services.steering.amend
        return await amend(steered.job.id, SteeringRequest(**request), BOB, is_joined=True)

    await set_rules(steered.app, ("guild", "", "words", "blood"))
    for request in ({"say": "blood"}, {"negative": "blood"}, {"prompt": "a cat::1 blood::1"}):
        with pytest.raises(UserError, match="“blood” may not be in a prompt here"):
            await join(**request)
    await set_rules(steered.app, ("user", BOB.id, "commands", "imagine"))
    with pytest.raises(UserError, match="You may not use steer here"):
        await join(say="blue")
    await set_rules(steered.app, ("user", BOB.id, "blocked", "on"))
    with pytest.raises(UserError, match="You are blocked on this server"):
        await join(say="blue")
    await set_rules(steered.app, ("user", ann.id, "count", "2"))
    with pytest.raises(UserError, match="3 pictures, and at most 2 are allowed"):
        await steered.amend(ann, split=(0, 2))
    assert await steered.list_states(ann) == []
    assert steered.received == []


@pytest.mark.asyncio
async def test_a_change_is_charged_to_the_author_and_settled_by_its_answer(
    open_steered: Any, ann: Member, wait_until: Any
) -> None:
    steered = await open_steered("fox --count 1")
    before = await steered.load_record()
    await set_rules(steered.app, ("user", ann.id, "cost_day", "0"))
    with pytest.raises(UserError, match=r"of device time.*Dropping pictures frees some"):
        await steered.amend(ann, split=(0, 4), say="terrier", say_weight=50.0)
    assert await steered.load_record() == before
    await set_rules(steered.app, ("user", ann.id, "cost_day", "unlimited"))
    await steered.amend(ann, split=(0, 4))
    waiting = await steered.load_record()
    assert waiting.charged == waiting.cost > before.cost
    await steered.answer(1, None, reason="A picture of this job is finished already.")

    async def is_refused() -> bool:
        return await steered.list_states(ann) == [(1, "refused", None)]

    await wait_until(is_refused)
    refused = await steered.load_record()
    assert (refused.cost, refused.charged) == (pytest.approx(before.cost), pytest.approx(before.cost))
    assert refused.task == before.task
    await steered.amend(ann, split=(0, 4))
    await steered.answer(2, 30)

    async def is_made() -> bool:
        return (await steered.load_record()).task.amendments != ()

    await wait_until(is_made)
    made = await steered.load_record()
    assert before.cost < made.cost < waiting.cost  # it holds for the last quarter of the steps alone
    assert made.rows == 4 * before.rows


@pytest.mark.asyncio
async def test_dropped_images_pay_for_a_split_in_the_same_request(open_steered: Any, ann: Member) -> None:
    steered = await open_steered("fox --count 4")
    await set_rules(steered.app, ("user", ann.id, "cost_day", "0"))
    views = await steered.amend(ann, drop=(1, 2, 3), split=(0, 3))
    assert [view.text for view in views] == ["drops images 2, 3 and 4", "splits image 1 into 3"]


@pytest.mark.asyncio
@pytest.mark.parametrize("is_worker_gone", [True, False])
async def test_a_cancelled_job_without_a_worker_pays_for_its_steps_and_not_for_a_waiting_change(
    open_steered: Any, ann: Member, wait_until: Any, is_worker_gone: bool
) -> None:
    steered = await open_steered("fox --count 1")
    before = await steered.load_record()
    started = JobStarted(job=steered.job.id, epoch=EPOCH + 1, worker="hand", step=before.steps // 2)
    await steered.worker.publish_result(started)

    async def is_halfway() -> bool:
        return (await steered.load_record()).step == before.steps // 2

    await wait_until(is_halfway)
    await steered.amend(ann, split=(0, 4))
    if is_worker_gone:
        await steered.worker.bus.remove_presence("hand")
        await wait_until(lambda: not steered.app.services.live_workers())
    await steered.app.services.job_control.cancel(steered.job.id, ann)  # else the patrol finds that nobody runs it

    async def is_cancelled() -> bool:
        return (await steered.load_record()).state == "cancelled"

    await wait_until(is_cancelled)
    assert (await steered.load_record()).charged == pytest.approx(before.cost / 2)


@pytest.mark.asyncio
async def test_a_waiting_change_is_no_part_of_the_cost_that_a_worker_scales(
    harness: Any, wait_until: Any, ann: Member, destination: Any
) -> None:
    app = await harness.open_app()
    worker = await harness.make_worker("hand")
    await worker.announce()
    await wait_until(lambda: app.services.live_workers())
    (accepted,) = await app.services.jobs.imagine("fox --count 1", ann, destination)
    first = await worker.take_job()
    await app.services.steering.amend(first.id, SteeringRequest(split=(0, 4)), ann)
    await app.store.requeue_job(first.id, time.time(), step=0, audit_note="lost")
    while (second := await worker.take_job()).attempt == 1:  # the first message once more
        pass
    assert (second.id, second.attempt, second.cost) == (accepted.job, 2, pytest.approx(first.cost))
    assert (await app.store.get_job(first.id)).cost > 1.5 * first.cost


@pytest.mark.slow
@pytest.mark.asyncio
async def test_a_worker_cannot_put_words_into_a_recipe(open_steered: Any, ann: Member, wait_until: Any) -> None:
    steered = await open_steered("fox --count 1")
    await steered.amend(ann, say="blue")
    await steered.answer(7, 3)  # nobody asked for it
    await steered.answer(1, 3, epoch=EPOCH + 1)  # by a claim that nobody has announced
    claimed = Amendment(1, 3, SetConcepts((Concept("something else"),)))
    await steered.finish(0, amendments=(claimed,))
    await wait_until(lambda: steered.app.bus.dead_letters.count["results"] == 1)
    record = await steered.load_record()
    assert (record.state, record.task.amendments) == ("running", ())


def test_an_upscale_holds_no_changes_whatever_its_worker_says() -> None:
    upscale = UpscaleTask(source="0" * 64)
    with pytest.raises(ValueError, match="changes of an upscale"):
        check_held(cast(Any, None), cast(Any, SimpleNamespace(task=upscale)), (Amendment(1, 0, SetGuidance(2.0)),))


def test_a_reproduced_split_makes_no_more_pictures_than_its_author_may() -> None:
    recipe = Recipe(
        concepts=(Concept("fox"),),
        model="embedded",
        sampler="ddim",
        steps=40,
        seed=7,
        guidance=3.0,
        width=64,
        height=64,
        dtype="float32",
        count=1,
        amendments=(Amendment(1, 2, SplitImage(0, (1, 2), 7)),),
    )
    rules = replace_fields(resolve((), BOB, Limits()), count=2)
    with pytest.raises(UserError, match="asks for 3 pictures, and at most 2"):
        check_task(rules, cast(Any, SimpleNamespace(action="reproduce", task=recipe)))
    check_task(replace_fields(rules, count=3), cast(Any, SimpleNamespace(action="reproduce", task=recipe)))


@pytest.mark.slow
@pytest.mark.asyncio
async def test_who_is_forgotten_leaves_changes_without_a_name(open_steered: Any, ann: Member, wait_until: Any) -> None:
    steered = await open_steered()
    request = SteeringRequest(say="blue")
    await steered.app.services.steering.amend(steered.job.id, request, BOB, is_joined=True)
    choices = await steered.app.store.query(export.read_choices, BOB.id)
    assert [(job, text) for job, _, text in choices.amendments] == [(steered.job.id, "fox, blue")]
    await steered.app.services.get(DataDeletion).request_deletion(BOB.id)

    async def is_forgotten() -> bool:
        (view,) = await steered.app.services.steering.list_amendments(steered.job.id, ann)
        return (view.member_id, view.member_name, view.text) == ("", "deleted member", "fox, blue")

    await wait_until(is_forgotten)


@pytest.mark.slow
@pytest.mark.asyncio
async def test_what_cannot_be_steered_says_so(open_steered: Any, ann: Member, destination: Any) -> None:
    steered = await open_steered()
    record = await steered.load_record()
    with pytest.raises(UserError, match="unmodified pipeline, which cannot be steered"):
        require_steerable(replace_fields(record, task=replace(record.task, sampler="heun")))
    with pytest.raises(UserError, match="being cancelled"):
        require_steerable(replace_fields(record, cancelling=True))
    upscale = UpscaleTask(source="0" * 64, factor=2, method="lanczos")
    with pytest.raises(UserError, match="An upscale is done in one go"):
        require_steerable(replace_fields(record, task=upscale))
