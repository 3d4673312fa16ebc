"""Forbidden words at admission, deleted pictures, reports and incidents: over a real store and broker."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from bot.domain import incidents as kinds
from bot.domain.dto import Member
from bot.domain.errors import UserError
from bot.domain.incidents import SENTENCES, Incident, incident_sentence
from bot.domain.texts import PICTURES_DELETED
from bot.jobs.word_filter import MAX_REQUESTS, TOO_COMPLEX, TOO_MANY_REQUESTS
from bot.services.front_end_actions import FrontEndActions, Report
from bot.store.deletion import deletion_steps
from bot.store.jobs import queries
from bot.store.members import preferences
from bot.store.moderation import incidents

pytestmark = pytest.mark.asyncio

ADMIN = Member("local:admin", "Ada", "local", is_moderator=True, is_admin=True)
MOD = Member("local:mod", "Mo", "local", is_moderator=True)
BOB = Member("local:bob", "Bob", "local")
OPERATOR = Member("local:operator", "Hal", "*", is_operator=True)
ELSEWHERE = Member("local:eve", "Eve", "another", is_moderator=True, is_admin=True)


async def refusal_of(awaitable) -> UserError:
    with pytest.raises(UserError) as error:
        await awaitable
    return error.value


async def finish_job(app, wait_until, member, destination, text="a lamp --count 2 --seed 7") -> str:
    (accepted,) = await app.services.jobs.imagine(text, member, destination)
    await wait_for_end(app, wait_until, accepted.job)
    return accepted.job


async def wait_for_end(app, wait_until, job) -> None:
    async def is_over():
        return (await app.store.get_job(job)).state in ("finished", "failed", "cancelled")

    await wait_until(is_over)


async def picture_hashes(app, *jobs) -> list[str]:
    return [one.sha256 for one in await app.store.query(queries.list_pictures, list(jobs))]


# The word filter


async def test_a_forbidden_word_is_refused_in_any_field_and_recorded(harness, ann, destination):
    app = await harness.open_app()
    await app.services.rule_admin.set_rule(ADMIN, "guild", "", "words", "gore, nud*")
    prompts = [
        "a g0re scene",
        "terrier --no g.o.r.e",
        "terrier:: gore::-0.5",
        "{terrier, N U D E S} here",
        "ｎｕｄｅ art",
    ]
    for prompt in prompts:
        error = await refusal_of(app.services.jobs.imagine(prompt, ann, destination))
        assert error.status == 422
        assert error.sentence.endswith("may not be in a prompt here: it is on the word list of this server's admins.")
    assert await refusal_of(app.services.jobs.imagine("terrier", ann, destination, negative="gore"))
    await app.services.jobs.imagine("Scunthorpe, denuded hills, gored", ann, destination)
    entries = await app.services.moderation.list_incidents(MOD)
    assert {(one.kind, one.actor_name, one.job, one.is_undecided) for one in entries} == {("word", "Ann", "", False)}
    assert entries[-1].text == "“gore” in “a g0re scene”"
    assert incident_sentence(entries[-1]) == ("Ann used a forbidden word or pattern: “gore” in “a g0re scene”")


async def test_a_picture_whose_word_is_now_forbidden_cannot_be_made_again(harness, wait_until, ann, destination):
    app = await harness.open_app()
    await harness.start_worker()
    await wait_until(lambda: app.services.live_workers())
    job = await finish_job(app, wait_until, ann, destination, "a lamp --no dark --count 1")
    for word in ("lamp", "dark"):
        await app.services.rule_admin.set_rule(ADMIN, "guild", "", "words", word)
        for variant in (
            app.services.variations.reroll(job, BOB, destination),
            app.services.variations.vary(job, 0, BOB, destination),
        ):
            assert word in (await refusal_of(variant)).sentence
        assert word in (await refusal_of(app.services.variations.upscale(job, 0, BOB, destination))).sentence
    assert (await app.services.job_views.load_view(job)).state == "finished", "the finished picture stays"


async def test_the_word_filter_reads_remixes_and_suffixes_too(harness, wait_until, ann, destination):
    app = await harness.open_app()
    await harness.start_worker()
    await wait_until(lambda: app.services.live_workers())
    job = await finish_job(app, wait_until, ann, destination, "a lamp --count 1")
    await app.services.rule_admin.set_rule(ADMIN, "guild", "", "words", "gore")
    ann_in_adult_channel = replace(ann, channel="18", age_restricted=True)
    for request in (
        app.services.variations.remix(job, 0, "a lamp, g0re", ann, destination),
        app.services.variations.remix(job, None, "a lamp --no gore", ann, destination),
        app.services.jobs.imagine("a lamp", ann, destination, suffix="with g o r e"),
        app.services.jobs.imagine("gore", ann_in_adult_channel, destination),
    ):
        assert "“gore” may not be in a prompt here" in (await refusal_of(request)).sentence
    direct = replace(ann, guild="discord:dm:1")
    await app.services.jobs.imagine("gore", direct, destination)


async def test_the_operators_word_list_applies_on_every_server_and_is_named(harness, ann, destination):
    app = await harness.open_app()
    await app.services.rule_admin.set_rule(OPERATOR, "operator", "", "words", "gore")
    await app.services.rule_admin.set_rule(OPERATOR, "operator", "", "patterns", r"\bX-?ray")
    await app.services.rule_admin.set_rule(ADMIN, "guild", "", "words", "lamp")
    for member in (ann, replace(ann, guild="another")):
        sentence = (await refusal_of(app.services.jobs.imagine("gore", member, destination))).sentence
        assert sentence == "“gore” may not be in a prompt here: it is on the word list of this bot's operator."
        sentence = (await refusal_of(app.services.jobs.imagine("an xray", member, destination))).sentence
        assert sentence == "This prompt has something that a pattern of this bot's operator does not allow."
    assert "this server's admins" in (await refusal_of(app.services.jobs.imagine("a lamp", ann, destination))).sentence
    await app.services.jobs.imagine("a lamp", replace(ann, guild="another"), destination)


async def test_a_bad_pattern_is_refused_when_it_is_set_and_says_why(harness):
    app = await harness.open_app()
    for pattern, reason in (("(?<=a)b", "invalid perl operator"), ("[", "missing ]"), ("a*", "nearly everything")):
        error = await refusal_of(app.services.rule_admin.set_rule(ADMIN, "guild", "", "patterns", pattern))
        assert reason in error.sentence
    assert await app.services.rule_admin.list_rules("local") == []


@pytest.mark.slow
async def test_a_prompt_too_tangled_to_check_is_refused(harness, ann, destination):
    app = await harness.open_app()
    words = [format(n * 2_654_435_761 % 2**60, "060b").replace("0", "i").replace("1", "l") for n in range(500)]
    await app.services.rule_admin.set_rule(ADMIN, "guild", "", "words", words)
    assert (await refusal_of(app.services.jobs.imagine("1" * 1900, ann, destination))).sentence == TOO_COMPLEX
    requests = [refusal_of(app.services.jobs.imagine("1" * 1900, ann, destination)) for _ in range(MAX_REQUESTS + 2)]
    sentences = [one.sentence for one in await asyncio.gather(*requests)]
    assert sorted(sentences) == sorted([TOO_COMPLEX] * MAX_REQUESTS + [TOO_MANY_REQUESTS] * 2), (
        "one member cannot fill the threads"
    )
    assert (await refusal_of(app.services.jobs.imagine("1" * 1900, ann, destination))).sentence == TOO_COMPLEX, (
        "the threads are free again"
    )


async def test_one_member_cannot_fill_the_list_of_incidents(harness, ann, destination):
    app = await harness.open_app()
    await app.services.rule_admin.set_rule(ADMIN, "guild", "", "words", "gore")
    for _ in range(2 * incidents.HOURLY_LIMIT):
        await refusal_of(app.services.jobs.imagine("gore", ann, destination))
    await refusal_of(app.services.jobs.imagine("gore", BOB, destination))
    entries = await app.services.moderation.list_incidents(MOD, 100)
    assert [one.actor_name for one in entries] == ["Bob", *["Ann"] * incidents.HOURLY_LIMIT]


async def test_a_blocked_member_can_make_nothing_and_it_is_recorded(harness, wait_until, ann, destination):
    app = await harness.open_app()
    await harness.start_worker()
    await wait_until(lambda: app.services.live_workers())
    job = await finish_job(app, wait_until, ann, destination)
    await app.services.rule_admin.set_rule(ADMIN, "user", BOB.id, "blocked", "on")
    services = app.services
    for request in (
        services.jobs.imagine("a lamp", BOB, destination),
        services.variations.vary(job, 0, BOB, destination),
        services.variations.reroll(job, BOB, destination),
        services.variations.upscale(job, 0, BOB, destination),
    ):
        error = await refusal_of(request)
        assert (error.status, "blocked on this server" in error.sentence) == (403, True)
    for action in ("favourite", "film", "prompt"):
        assert "blocked" in (await refusal_of(app.services.rule_admin.check_command(BOB, action))).sentence
    assert {one.kind for one in await app.services.moderation.list_incidents(MOD)} == {"blocked"}
    bob_elsewhere = replace(BOB, guild="another")
    await services.jobs.imagine("a lamp", bob_elsewhere, destination)
    await app.services.rule_admin.set_rule(OPERATOR, "user", BOB.id, "blocked", "on")
    error = await refusal_of(services.jobs.imagine("a lamp", bob_elsewhere, destination))
    assert error.sentence.startswith("This bot's operator has blocked you")


# Deleting


async def test_deleted_pictures_are_gone_everywhere(harness, wait_until, ann, destination):
    app = await harness.open_app()
    await harness.start_worker()
    await wait_until(lambda: app.services.live_workers())
    services = app.services
    job = await finish_job(app, wait_until, ann, destination)
    upscale = (await services.variations.upscale(job, 1, BOB, destination)).job
    variation = (await services.variations.vary(job, 0, BOB, destination)).job
    await wait_for_end(app, wait_until, upscale)
    await wait_for_end(app, wait_until, variation)
    await app.store.write(preferences.toggle_favourite, BOB.id, job, 0, 1.0)
    reported_hashes = await picture_hashes(app, job, upscale)
    variation_hashes = await picture_hashes(app, variation)
    await app.services.moderation.report_picture(job, BOB, "no lamp")

    deletion = await app.services.moderation.delete_pictures(job, ann)
    assert deletion.sentence == "Deleted. Its pictures are gone for good."
    assert list(deletion.deliveries) == [job, upscale]
    assert deletion.deliveries[job]["answer"].destination == destination
    for deleted_job in (job, upscale):
        for request in (
            services.job_views.load_view(deleted_job),
            services.gallery.read_picture(deleted_job, 0),
            services.gallery.render_film(deleted_job),
            services.gallery.keyframe_steps(deleted_job),
            services.gallery.render_keyframe_grid(deleted_job, 0),
            services.variations.vary(deleted_job, 0, BOB, destination),
            services.variations.upscale(deleted_job, 0, BOB, destination),
            services.variations.reroll(deleted_job, BOB, destination),
        ):
            error = await refusal_of(request)
            assert (error.status, error.sentence) == (404, PICTURES_DELETED)
    assert [view.id for view in await services.job_views.load_recent("local")] == [variation]
    assert await app.store.query(preferences.list_favourites, BOB.id) == []
    assert await picture_hashes(app, job, upscale) == []
    for sha in reported_hashes:
        assert await app.picture_store.has(sha) == (sha in variation_hashes), (
            "a picture that another job shares is kept"
        )
    assert (await services.gallery.read_picture(variation, 1)).startswith(b"\x89PNG")
    await app.services.moderation.delete_pictures(variation, BOB)
    assert not any([await app.picture_store.has(sha) for sha in variation_hashes])
    assert (await app.services.moderation.delete_pictures(job, ann)).sentence == PICTURES_DELETED
    entries = await app.services.moderation.list_incidents(MOD)
    assert [(one.kind, one.actor_name, one.job) for one in entries] == [
        ("deleted", "Ann", job),
        ("report", "Bob", job),
    ], "deleting a reported picture of one's own is recorded"
    assert (entries[0].text, entries[1].is_undecided) == ("with 1 upscaled", False)


async def test_the_owner_moderators_and_the_operator_may_delete(harness, ann, destination):
    app = await harness.open_app()
    (accepted,) = await app.services.jobs.imagine("a lamp", ann, destination)
    for other_member in (BOB, ELSEWHERE):
        assert (await refusal_of(app.services.moderation.delete_pictures(accepted.job, other_member))).status == 403
    assert (await refusal_of(app.services.moderation.delete_pictures("0" * 26, ann))).status == 404
    for member in (MOD, Member("x", "X", "another", is_operator=True)):
        (one,) = await app.services.jobs.imagine("a lamp", ann, destination)
        assert (await app.services.moderation.delete_pictures(one.job, member)).job == one.job


async def test_deleting_a_waiting_job_cancels_it_at_no_cost(harness, ann, destination):
    app = await harness.open_app()
    (accepted,) = await app.services.jobs.imagine("a lamp", ann, destination)
    await app.services.moderation.delete_pictures(accepted.job, ann)
    record = await app.store.get_job(accepted.job)
    assert (record.state, record.charged) == ("cancelled", 0.0)
    assert await app.services.job_views.load_queue("local") == []
    assert await app.services.deliveries.list_undelivered("web") == [], "nothing is left to deliver"


async def test_deleting_a_running_job_cancels_it_and_leaves_no_picture(harness, wait_until, ann, destination):
    app = await harness.open_app()
    worker, _ = await harness.start_worker()
    worker.run_gate.clear()
    await wait_until(lambda: app.services.live_workers())
    (accepted,) = await app.services.jobs.imagine("a lamp --count 1", ann, destination)

    async def is_running():
        return (await app.store.get_job(accepted.job)).state == "running"

    await wait_until(is_running)
    record = await app.store.get_job(accepted.job)
    await worker.publish_picture(record.to_job(), record.epoch, 0)

    async def has_picture():
        return await picture_hashes(app, accepted.job)

    await wait_until(has_picture)
    (sha,) = await picture_hashes(app, accepted.job)
    await app.services.moderation.delete_pictures(accepted.job, ann)
    assert not await app.picture_store.has(sha)
    await worker.publish_picture(record.to_job(), record.epoch, 0)  # a result that was on its way
    await wait_for_end(app, wait_until, accepted.job)
    assert (await app.store.get_job(accepted.job)).state == "cancelled"
    await asyncio.sleep(0.2)
    assert await picture_hashes(app, accepted.job) == []
    assert not await app.picture_store.has(sha)


async def test_the_next_start_removes_deleted_pictures_that_a_crash_left(harness, wait_until, ann, destination):
    async with harness.open_temporary_app() as app:
        await harness.start_worker()
        await wait_until(lambda: app.services.live_workers())
        job = await finish_job(app, wait_until, ann, destination)
        shas = await picture_hashes(app, job)
        await app.store.write(deletion_steps.mark_deleted, [job], (ann.id, ann.name), 1.0)  # as if the power failed now
    app = await harness.open_app()

    async def is_swept():
        return not await picture_hashes(app, job)

    await wait_until(is_swept)
    assert not any([await app.picture_store.has(sha) for sha in shas])


async def test_members_can_delete_while_the_picture_store_is_unreachable(
    harness, wait_until, ann, destination, monkeypatch
):
    app = await harness.open_app()
    await harness.start_worker()
    await wait_until(lambda: app.services.live_workers())
    job, later_job = [await finish_job(app, wait_until, ann, destination, "a lamp --count 1") for _ in range(2)]

    async def fail(_):
        raise OSError("the bucket is away")

    with monkeypatch.context() as outage:
        outage.setattr(app.picture_store, "delete", fail)
        await app.services.moderation.delete_pictures(job, ann)
    assert (await refusal_of(app.services.gallery.read_picture(job, 0))).sentence == PICTURES_DELETED
    await app.services.moderation.delete_pictures(later_job, ann)
    assert await picture_hashes(app, later_job) == []
    assert len(await picture_hashes(app, job)) == 1, (
        "its ladder is recorded as still there, and a later deletion does not wait for it"
    )
    await app.services.moderation.remove_leftovers()
    assert await picture_hashes(app, job) == []


async def test_a_picture_that_arrives_again_while_it_is_deleted_is_kept(harness, wait_until, ann, destination):
    """Jobs share content by its hash, so storing it and deleting it take turns."""
    app = await harness.open_app()
    await harness.start_worker()
    await wait_until(lambda: app.services.live_workers())
    jobs = [await finish_job(app, wait_until, ann, destination, "a lamp --count 1") for _ in range(3)]
    for job in jobs:
        (other,) = await app.services.jobs.imagine("a lamp --count 1", BOB, destination)
        deleting_it = asyncio.create_task(app.services.moderation.delete_pictures(job, ann))
        await wait_for_end(app, wait_until, other.job)
        await deleting_it
        assert (await app.services.gallery.read_picture(other.job, 0)).startswith(b"\x89PNG")


# Reports and incidents


async def test_a_report_reaches_the_moderators_list_and_their_channel(harness, wait_until, ann, destination):
    app = await harness.open_app()
    moderation = app.services.moderation
    (accepted,) = await app.services.jobs.imagine("a lamp", ann, destination)
    sentence = await moderation.report_picture(accepted.job, BOB, "not\u202e nice @everyone")
    assert sentence == "Reported: it stands in the list of the moderators of this server. Thank you."
    (undecided_incident,) = await moderation.list_incidents(MOD, undecided_only=True)
    assert (
        undecided_incident.kind,
        undecided_incident.actor_name,
        undecided_incident.job,
        undecided_incident.text,
    ) == ("report", "Bob", accepted.job, "not nice @everyone")
    assert (await refusal_of(moderation.report_picture(accepted.job, BOB, "again"))).sentence == (
        "You have reported this already: the moderators have it."
    )
    posted_reports: list[Report] = []

    async def post(report: Report) -> bool:
        posted_reports.append(report)
        return True

    app.services.get(FrontEndActions).connect(post_report=post)
    await app.services.rule_admin.set_rule(ADMIN, "guild", "", "reports", "<#42>")
    sentence = await moderation.report_picture(accepted.job, replace(BOB, id="local:cy", name="Cy"), "me too")
    assert sentence == "Reported: the moderators of this server see it in their channel. Thank you."
    (one,) = posted_reports
    assert (one.channel, one.job, one.author, one.reporter, one.reason) == ("42", accepted.job, "Ann", "Cy", "me too")

    async def fail(_: Report) -> bool:
        raise RuntimeError("no such channel")

    app.services.get(FrontEndActions).connect(post_report=fail)
    sentence = await moderation.report_picture(accepted.job, replace(BOB, id="local:di", name="Di"), "and me")
    assert "it stands in the list" in sentence
    await moderation.delete_pictures(accepted.job, MOD)
    assert await moderation.list_incidents(MOD, undecided_only=True) == [], "a deleted picture leaves nothing to decide"
    assert (await refusal_of(moderation.report_picture(accepted.job, BOB, "late"))).sentence == PICTURES_DELETED


async def test_reports_need_a_reason_and_have_a_daily_limit(harness, ann, destination):
    app = await harness.open_app()
    report = app.services.moderation.report_picture
    (accepted,) = await app.services.jobs.imagine("a lamp", ann, destination)
    assert (await refusal_of(report(accepted.job, ann, "mine"))).sentence == "This one is yours: delete it instead."
    assert (await refusal_of(report(accepted.job, ELSEWHERE, "no"))).status == 403
    assert (await refusal_of(report(accepted.job, BOB, " \u200b "))).sentence.startswith("Say in a few words")
    assert (
        "at most 500 characters; this one has 501" in (await refusal_of(report(accepted.job, BOB, "x" * 501))).sentence
    )
    for _ in range(incidents.DAILY_REPORTS):
        (one,) = await app.services.jobs.imagine("a lamp --count 1", ann, destination)
        await report(one.job, BOB, "no")
        await app.services.job_control.cancel(one.job, ann)
    error = await refusal_of(report(accepted.job, BOB, "no"))
    assert "At most 10 reports in 24 hours, and you have made 10" in error.sentence
    assert error.retry_at is not None


async def test_a_private_job_cannot_be_reported_by_others(harness, ann, destination):
    app = await harness.open_app()
    await app.services.preferences.set_preference(ann.id, "results", "private")
    (accepted,) = await app.services.jobs.imagine("a lamp", ann, destination)
    error = await refusal_of(app.services.moderation.report_picture(accepted.job, BOB, "no"))
    assert error.sentence == "That job is private: only its author may use it."


async def test_moderators_close_incidents_of_their_own_server(harness, ann, destination):
    app = await harness.open_app()
    moderation = app.services.moderation
    (accepted,) = await app.services.jobs.imagine("a lamp", ann, destination)
    await moderation.report_picture(accepted.job, BOB, "no")
    ((number,),) = [(one.number,) for one in await moderation.list_incidents(MOD)]
    for other_member in (BOB, ann):
        assert (await refusal_of(moderation.list_incidents(other_member))).status == 403
        assert (await refusal_of(moderation.close_incident(number, other_member))).status == 403
    assert (
        await refusal_of(moderation.close_incident(number, ELSEWHERE))
    ).sentence == f"There is no incident {number} here."
    assert (await moderation.close_incident(number, MOD)).closed is not None
    await moderation.close_incident(number, MOD)
    assert await moderation.list_incidents(MOD, undecided_only=True) == []
    assert [(one.kind, one.text) for one in await moderation.list_incidents(MOD)] == [
        ("closed", f"number {number}"),
        ("report", "no"),
    ]


async def test_a_server_keeps_a_limited_number_of_incidents_and_drops_open_ones_last(store, monkeypatch):
    monkeypatch.setattr(incidents, "MAX_PER_GUILD", 20)
    for number in range(5):
        await store.write(incidents.write_incident, "g", "report", f"m{number}", "M", "no", 1.0, f"job{number}")
    for number in range(40):
        await store.write(incidents.write_incident, "g", "word", f"a{number}", "A", "gore", 2.0 + number)
    await store.write(incidents.write_incident, "other", "word", "a", "A", "gore", 1.0)
    newest_incidents = await store.query(incidents.list_incidents, "g", 100)
    assert len(newest_incidents) == 20
    assert sum(one.kind == "report" for one in newest_incidents) == 5
    assert newest_incidents[0].actor == "a39"
    assert len(await store.query(incidents.list_incidents, None, 100)) == 21


async def test_every_kind_of_incident_has_a_sentence_and_long_texts_are_cut():
    assert set(kinds.NEED_DECISION) | set(kinds.REPEATABLE) <= set(SENTENCES)
    for kind in SENTENCES:
        sentence = incident_sentence(Incident(1, "g", 0.0, kind, "a", "A" * 500, "", "\u202e" + "x" * 900))
        assert sentence.count("A") <= 41
        assert "\u202e" not in sentence
        assert len(sentence) < 420
        assert incident_sentence(Incident(1, "g", 0.0, kind, "a", "", "", "")).startswith(
            ("Somebody", "A picture for Somebody")
        )


async def test_a_decision_about_a_held_picture_closes_its_incident(store):
    await store.write(
        incidents.write_incident, "g", "held", "m", "M", "Picture 1 was flagged by the picture check.", 1.0, "j"
    )
    await store.write(
        incidents.write_incident, "g", "held", "m", "M", "Picture 2 was flagged by the picture check.", 1.0, "j"
    )
    await store.write(incidents.close_held_incident, "j", "Picture 1 ", 2.0)
    assert [one.text[:9] for one in await store.query(incidents.list_incidents, "g", 9, open_only=True)] == [
        "Picture 2"
    ]
