"""Forbidden words at admission, deleted pictures, reports and incidents: over a real store and broker."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from bot import incidents as kinds
from bot.desk.moderation import Report
from bot.desk.screening import AT_ONCE, BUSY, TANGLED
from bot.incidents import KINDS, Incident, told
from bot.refused import Refused
from bot.sentences import DELETED
from bot.store import deleting, incidents, members, reads
from bot.views import Member

pytestmark = pytest.mark.asyncio

ADMIN = Member("local:admin", "Ada", "local", moderator=True, admin=True)
MOD = Member("local:mod", "Mo", "local", moderator=True)
BOB = Member("local:bob", "Bob", "local")
HOUSE = Member("local:house", "Hal", "*", house=True)
ELSEWHERE = Member("local:eve", "Eve", "another", moderator=True, admin=True)


async def refused(awaited) -> Refused:
    with pytest.raises(Refused) as caught:
        await awaited
    return caught.value


async def a_finished_job(house, until, member, here, text="a lamp --count 2 --seed 7") -> str:
    (ticket,) = await house.studio.imagine(text, member, here)
    await ended(house, until, ticket.job)
    return ticket.job


async def ended(house, until, job) -> None:
    async def over():
        return (await house.store.record(job)).state in ("finished", "failed", "cancelled")

    await until(over)


async def contents(house, *jobs) -> list[str]:
    return [one.sha256 for one in await house.store.ask(reads.stored, list(jobs))]


# Words


async def test_a_forbidden_word_is_refused_in_any_field_and_noted(workplace, ann, here):
    house = await workplace.house()
    await house.desk.administration.set(ADMIN, "guild", "", "words", "gore, nud*")
    prompts = [
        "a g0re scene", "terrier --no g.o.r.e", "terrier:: gore::-0.5", "{terrier, N U D E S} here", "ｎｕｄｅ art",
    ]  # fmt: skip
    for prompt in prompts:
        error = await refused(house.studio.imagine(prompt, ann, here))
        assert error.status == 422
        assert error.sentence.endswith("may not be in a prompt here: it is on the word list of this server's admins.")
    assert await refused(house.studio.imagine("terrier", ann, here, negative="gore"))
    await house.studio.imagine("Scunthorpe, denuded hills, gored", ann, here)
    noted = await house.desk.moderation.incidents(MOD)
    assert {(one.kind, one.actor_name, one.job, one.waits) for one in noted} == {("word", "Ann", "", False)}
    assert noted[-1].said == "“gore” in “a g0re scene”"
    assert told(noted[-1]) == (
        "Ann used a forbidden word or pattern: “gore” in “a g0re scene”"
    )  # fmt: skip


async def test_what_was_made_before_its_word_was_listed_is_not_made_again(workplace, until, ann, here):
    house = await workplace.house()
    await workplace.worker()
    await until(lambda: house.studio.workers())
    job = await a_finished_job(house, until, ann, here, "a lamp --no dark --count 1")
    for word in ("lamp", "dark"):
        await house.desk.administration.set(ADMIN, "guild", "", "words", word)
        for again in (house.studio.reroll(job, BOB, here), house.studio.vary(job, 0, BOB, here)):
            assert word in (await refused(again)).sentence
        assert word in (await refused(house.studio.upscale(job, 0, BOB, here))).sentence
    assert (await house.studio.view(job)).state == "finished", "what is there stays"


async def test_other_words_for_a_picture_and_a_suffix_are_read_too(workplace, until, ann, here):
    house = await workplace.house()
    await workplace.worker()
    await until(lambda: house.studio.workers())
    job = await a_finished_job(house, until, ann, here, "a lamp --count 1")
    await house.desk.administration.set(ADMIN, "guild", "", "words", "gore")
    adults = replace(ann, channel="18", age_restricted=True)
    for asked in (
        house.studio.remix(job, 0, "a lamp, g0re", ann, here),
        house.studio.remix(job, None, "a lamp --no gore", ann, here),
        house.studio.imagine("a lamp", ann, here, suffix="with g o r e"),
        house.studio.imagine("gore", adults, here),
    ):
        assert "“gore” may not be in a prompt here" in (await refused(asked)).sentence
    direct = replace(ann, guild="discord:dm:1")
    await house.studio.imagine("gore", direct, here)


async def test_the_list_of_whoever_runs_the_bot_holds_everywhere_and_is_named(workplace, ann, here):
    house = await workplace.house()
    await house.desk.administration.set(HOUSE, "house", "", "words", "gore")
    await house.desk.administration.set(HOUSE, "house", "", "patterns", r"\bX-?ray")
    await house.desk.administration.set(ADMIN, "guild", "", "words", "lamp")
    for member in (ann, replace(ann, guild="another")):
        said = (await refused(house.studio.imagine("gore", member, here))).sentence
        assert said == "“gore” may not be in a prompt here: it is on the word list of this bot's operator."
        said = (await refused(house.studio.imagine("an xray", member, here))).sentence
        assert said == "This prompt has something that a pattern of this bot's operator does not allow."
    assert "this server's admins" in (await refused(house.studio.imagine("a lamp", ann, here))).sentence
    await house.studio.imagine("a lamp", replace(ann, guild="another"), here)


async def test_a_bad_pattern_is_refused_when_it_is_set_and_says_why(workplace):
    house = await workplace.house()
    for pattern, why in (("(?<=a)b", "invalid perl operator"), ("[", "missing ]"), ("a*", "nearly everything")):
        error = await refused(house.desk.administration.set(ADMIN, "guild", "", "patterns", pattern))
        assert why in error.sentence
    assert await house.desk.administration.rules("local") == []


async def test_a_prompt_that_cannot_be_read_is_not_taken(workplace, ann, here):
    house = await workplace.house()
    words = [format(n * 2_654_435_761 % 2**60, "060b").replace("0", "i").replace("1", "l") for n in range(500)]
    await house.desk.administration.set(ADMIN, "guild", "", "words", words)
    assert (await refused(house.studio.imagine("1" * 1900, ann, here))).sentence == TANGLED
    asked = [refused(house.studio.imagine("1" * 1900, ann, here)) for _ in range(AT_ONCE + 2)]
    said = [one.sentence for one in await asyncio.gather(*asked)]
    assert sorted(said) == sorted([TANGLED] * AT_ONCE + [BUSY] * 2), "one member fills no thread"
    assert (await refused(house.studio.imagine("1" * 1900, ann, here))).sentence == TANGLED, "and none for ever"


async def test_nobody_fills_the_list_of_incidents(workplace, ann, here):
    house = await workplace.house()
    await house.desk.administration.set(ADMIN, "guild", "", "words", "gore")
    for _ in range(2 * incidents.EACH):
        await refused(house.studio.imagine("gore", ann, here))
    await refused(house.studio.imagine("gore", BOB, here))
    noted = await house.desk.moderation.incidents(MOD, 100)
    assert [one.actor_name for one in noted] == ["Bob", *["Ann"] * incidents.EACH]


async def test_a_blocked_member_makes_nothing_and_it_is_noted(workplace, until, ann, here):
    house = await workplace.house()
    await workplace.worker()
    await until(lambda: house.studio.workers())
    job = await a_finished_job(house, until, ann, here)
    await house.desk.administration.set(ADMIN, "user", BOB.id, "blocked", "on")
    studio = house.studio
    for asked in (studio.imagine("a lamp", BOB, here), studio.vary(job, 0, BOB, here), studio.reroll(job, BOB, here),
                  studio.upscale(job, 0, BOB, here)):  # fmt: skip
        error = await refused(asked)
        assert (error.status, "blocked on this server" in error.sentence) == (403, True)
    for action in ("favourite", "film", "prompt"):
        assert "blocked" in (await refused(house.desk.administration.allowed(BOB, action))).sentence
    assert {one.kind for one in await house.desk.moderation.incidents(MOD)} == {"blocked"}
    there = replace(BOB, guild="another")
    await studio.imagine("a lamp", there, here)
    await house.desk.administration.set(HOUSE, "user", BOB.id, "blocked", "on")
    error = await refused(studio.imagine("a lamp", there, here))
    assert error.sentence.startswith("This bot's operator has blocked you")


# Deleting


async def test_deleted_pictures_are_gone_everywhere(workplace, until, ann, here):
    house = await workplace.house()
    await workplace.worker()
    await until(lambda: house.studio.workers())
    studio = house.studio
    job = await a_finished_job(house, until, ann, here)
    larger = (await studio.upscale(job, 1, BOB, here)).job
    varied = (await studio.vary(job, 0, BOB, here)).job
    await ended(house, until, larger)
    await ended(house, until, varied)
    await house.store.write(members.favour, BOB.id, job, 0, 1.0)
    mine, theirs = await contents(house, job, larger), await contents(house, varied)
    await house.desk.moderation.report(job, BOB, "no lamp")

    deletion = await house.desk.moderation.delete(job, ann)
    assert deletion.sentence == "Deleted. Its pictures are gone for good."
    assert list(deletion.shown) == [job, larger]
    assert deletion.shown[job]["answer"].place == here
    for gone in (job, larger):
        for asked in (
            studio.view(gone), studio.picture(gone, 0), studio.film(gone), studio.rungs(gone), studio.rung(gone, 0),
            studio.vary(gone, 0, BOB, here), studio.upscale(gone, 0, BOB, here), studio.reroll(gone, BOB, here),
        ):  # fmt: skip
            error = await refused(asked)
            assert (error.status, error.sentence) == (404, DELETED)
    assert [view.id for view in await studio.recent("local")] == [varied]
    assert await house.store.ask(members.favoured, BOB.id) == []
    assert await contents(house, job, larger) == []
    for sha in mine:
        assert await house.pictures.has(sha) == (sha in theirs), "what another job has too is kept"
    assert (await studio.picture(varied, 1)).startswith(b"\x89PNG")
    await house.desk.moderation.delete(varied, BOB)
    assert not any([await house.pictures.has(sha) for sha in theirs])
    assert (await house.desk.moderation.delete(job, ann)).sentence == DELETED
    noted = await house.desk.moderation.incidents(MOD)
    assert [(one.kind, one.actor_name, one.job) for one in noted] == [
        ("deleted", "Ann", job), ("report", "Bob", job),
    ], "one's own is noted where moderators were told of it"  # fmt: skip
    assert (noted[0].said, noted[1].waits) == ("with 1 upscaled", False)


async def test_who_may_delete(workplace, ann, here):
    house = await workplace.house()
    (ticket,) = await house.studio.imagine("a lamp", ann, here)
    for stranger in (BOB, ELSEWHERE):
        assert (await refused(house.desk.moderation.delete(ticket.job, stranger))).status == 403
    assert (await refused(house.desk.moderation.delete("0" * 26, ann))).status == 404
    for member in (MOD, Member("x", "X", "another", house=True)):
        (one,) = await house.studio.imagine("a lamp", ann, here)
        assert (await house.desk.moderation.delete(one.job, member)).job == one.job


async def test_a_job_that_waits_is_cancelled_with_it_and_costs_nothing(workplace, ann, here):
    house = await workplace.house()
    (ticket,) = await house.studio.imagine("a lamp", ann, here)
    await house.desk.moderation.delete(ticket.job, ann)
    record = await house.store.record(ticket.job)
    assert (record.state, record.charged) == ("cancelled", 0.0)
    assert await house.studio.queue("local") == []
    assert await house.desk.deliveries.owed("web") == [], "nothing of it is owed to anybody"


async def test_a_job_that_runs_is_cancelled_with_it_and_leaves_no_picture(workplace, until, ann, here):
    house = await workplace.house()
    apprentice, _ = await workplace.worker()
    apprentice.go.clear()
    await until(lambda: house.studio.workers())
    (ticket,) = await house.studio.imagine("a lamp --count 1", ann, here)

    async def began():
        return (await house.store.record(ticket.job)).state == "running"

    await until(began)
    record = await house.store.record(ticket.job)
    await apprentice.picture(record.job(), record.epoch, 0)

    async def came():
        return await contents(house, ticket.job)

    await until(came)
    (sha,) = await contents(house, ticket.job)
    await house.desk.moderation.delete(ticket.job, ann)
    assert not await house.pictures.has(sha)
    await apprentice.picture(record.job(), record.epoch, 0)  # a report that was on its way
    await ended(house, until, ticket.job)
    assert (await house.store.record(ticket.job)).state == "cancelled"
    await asyncio.sleep(0.2)
    assert await contents(house, ticket.job) == []
    assert not await house.pictures.has(sha)


async def test_what_a_crash_left_of_deleted_pictures_is_removed_at_the_next_start(workplace, until, ann, here):
    async with workplace.visit() as house:
        await workplace.worker()
        await until(lambda: house.studio.workers())
        job = await a_finished_job(house, until, ann, here)
        shas = await contents(house, job)
        await house.store.write(deleting.mark, [job], (ann.id, ann.name), 1.0)  # and then the power fails
    house = await workplace.house()

    async def swept():
        return not await contents(house, job)

    await until(swept)
    assert not any([await house.pictures.has(sha) for sha in shas])


async def test_an_outage_of_the_picture_store_keeps_nobody_from_deleting(workplace, until, ann, here, monkeypatch):
    house = await workplace.house()
    await workplace.worker()
    await until(lambda: house.studio.workers())
    job, later = [await a_finished_job(house, until, ann, here, "a lamp --count 1") for _ in range(2)]

    async def away(_):
        raise OSError("the bucket is away")

    with monkeypatch.context() as outage:
        outage.setattr(house.pictures, "drop", away)
        await house.desk.moderation.delete(job, ann)
    assert (await refused(house.studio.picture(job, 0))).sentence == DELETED
    await house.desk.moderation.delete(later, ann)
    assert await contents(house, later) == []
    assert len(await contents(house, job)) == 1, "its ladder, noted as still there; who deletes waits for no other's"
    await house.desk.moderation.sweep()
    assert await contents(house, job) == []


async def test_the_same_picture_that_comes_in_while_it_is_deleted_is_kept(workplace, until, ann, here):
    """Content is shared by its name: whoever keeps it and whoever drops it take turns."""
    house = await workplace.house()
    await workplace.worker()
    await until(lambda: house.studio.workers())
    jobs = [await a_finished_job(house, until, ann, here, "a lamp --count 1") for _ in range(3)]
    for job in jobs:
        (other,) = await house.studio.imagine("a lamp --count 1", BOB, here)
        deleting_it = asyncio.create_task(house.desk.moderation.delete(job, ann))
        await ended(house, until, other.job)
        await deleting_it
        assert (await house.studio.picture(other.job, 0)).startswith(b"\x89PNG")


# Reports and incidents


async def test_a_report_reaches_the_moderators_list_and_their_channel(workplace, until, ann, here):
    house = await workplace.house()
    moderation = house.desk.moderation
    (ticket,) = await house.studio.imagine("a lamp", ann, here)
    said = await moderation.report(ticket.job, BOB, "not\u202e nice @everyone")
    assert said == "Reported: it stands in the list of the moderators of this server. Thank you."
    (waiting,) = await moderation.incidents(MOD, waiting=True)
    assert (waiting.kind, waiting.actor_name, waiting.job, waiting.said) == (
        "report", "Bob", ticket.job, "not nice @everyone",
    )  # fmt: skip
    assert (await refused(moderation.report(ticket.job, BOB, "again"))).sentence == (
        "You have reported this already: the moderators have it."
    )
    posted: list[Report] = []

    async def post(report: Report) -> bool:
        posted.append(report)
        return True

    moderation.post = post
    await house.desk.administration.set(ADMIN, "guild", "", "reports", "<#42>")
    said = await moderation.report(ticket.job, replace(BOB, id="local:cy", name="Cy"), "me too")
    assert said == "Reported: the moderators of this server see it in their channel. Thank you."
    (one,) = posted
    assert (one.channel, one.job, one.author, one.reporter, one.reason) == ("42", ticket.job, "Ann", "Cy", "me too")

    async def broken(_: Report) -> bool:
        raise RuntimeError("no such channel")

    moderation.post = broken
    said = await moderation.report(ticket.job, replace(BOB, id="local:di", name="Di"), "and me")
    assert "it stands in the list" in said
    await moderation.delete(ticket.job, MOD)
    assert await moderation.incidents(MOD, waiting=True) == [], "a deleted picture leaves nothing to decide"
    assert (await refused(moderation.report(ticket.job, BOB, "late"))).sentence == DELETED


async def test_reports_are_bounded(workplace, ann, here):
    house = await workplace.house()
    report = house.desk.moderation.report
    (ticket,) = await house.studio.imagine("a lamp", ann, here)
    assert (await refused(report(ticket.job, ann, "mine"))).sentence == "This one is yours: delete it instead."
    assert (await refused(report(ticket.job, ELSEWHERE, "no"))).status == 403
    assert (await refused(report(ticket.job, BOB, " \u200b "))).sentence.startswith("Say in a few words")
    assert "at most 500 characters; this one has 501" in (await refused(report(ticket.job, BOB, "x" * 501))).sentence
    for _ in range(incidents.REPORTS):
        (one,) = await house.studio.imagine("a lamp --count 1", ann, here)
        await report(one.job, BOB, "no")
        await house.studio.cancel(one.job, ann)
    error = await refused(report(ticket.job, BOB, "no"))
    assert "At most 10 reports in 24 hours, and you have made 10" in error.sentence
    assert error.frees is not None


async def test_a_private_job_cannot_be_reported_by_others(workplace, ann, here):
    house = await workplace.house()
    await house.desk.preferences.prefer(ann.id, "results", "private")
    (ticket,) = await house.studio.imagine("a lamp", ann, here)
    error = await refused(house.desk.moderation.report(ticket.job, BOB, "no"))
    assert error.sentence == "That job is private: only its author may use it."


async def test_moderators_close_incidents_of_their_own_server(workplace, ann, here):
    house = await workplace.house()
    moderation = house.desk.moderation
    (ticket,) = await house.studio.imagine("a lamp", ann, here)
    await moderation.report(ticket.job, BOB, "no")
    ((number,),) = [(one.number,) for one in await moderation.incidents(MOD)]
    for stranger in (BOB, ann):
        assert (await refused(moderation.incidents(stranger))).status == 403
        assert (await refused(moderation.close(number, stranger))).status == 403
    assert (await refused(moderation.close(number, ELSEWHERE))).sentence == f"There is no incident {number} here."
    assert (await moderation.close(number, MOD)).closed is not None
    await moderation.close(number, MOD)
    assert await moderation.incidents(MOD, waiting=True) == []
    assert [(one.kind, one.said) for one in await moderation.incidents(MOD)] == [
        ("closed", f"number {number}"), ("report", "no"),
    ]  # fmt: skip


async def test_a_server_keeps_so_many_incidents_and_forgets_what_waits_last(store, monkeypatch):
    monkeypatch.setattr(incidents, "MOST", 20)
    for number in range(5):
        await store.write(incidents.note, "g", "report", f"m{number}", "M", "no", 1.0, f"job{number}")
    for number in range(40):
        await store.write(incidents.note, "g", "word", f"a{number}", "A", "gore", 2.0 + number)
    await store.write(incidents.note, "other", "word", "a", "A", "gore", 1.0)
    kept = await store.ask(incidents.newest, "g", 100)
    assert len(kept) == 20
    assert sum(one.kind == "report" for one in kept) == 5
    assert kept[0].actor == "a39"
    assert len(await store.ask(incidents.newest, None, 100)) == 21


async def test_every_kind_has_its_sentence_and_long_texts_are_cut():
    assert set(kinds.WAITING) | set(kinds.REPEATED) <= set(KINDS)
    for kind in KINDS:
        said = told(Incident(1, "g", 0.0, kind, "a", "A" * 500, "", "\u202e" + "x" * 900))
        assert said.count("A") <= 41
        assert "\u202e" not in said
        assert len(said) < 420
        assert told(Incident(1, "g", 0.0, kind, "a", "", "", "")).startswith(("Somebody", "A picture for Somebody"))


async def test_a_decision_about_a_held_picture_closes_what_waits(store):
    await store.write(incidents.note, "g", "held", "m", "M", "Picture 1 was flagged by the picture check.", 1.0, "j")
    await store.write(incidents.note, "g", "held", "m", "M", "Picture 2 was flagged by the picture check.", 1.0, "j")
    await store.write(incidents.decided, "j", "Picture 1 ", 2.0)
    assert [one.said[:9] for one in await store.ask(incidents.newest, "g", 9, waiting=True)] == ["Picture 2"]
