"""`darkroom jobs`: the operator reads and changes jobs, without a bot and beside a running one."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from bot.__main__ import main
from bot.cli.up.startup import announce_address
from bot.domain.dto import Destination, Member
from bot.domain.events import JobEnded
from bot.store.jobs import queries
from bot.web.app import build_app, run_server

WEB = Destination("web", {})
BOB = Member("discord:5", "Bob\x1b[2J", "discord:7")
DISCORD = Destination(
    "discord", {"guild": "7", "channel": "8", "message": "9", "token": "very-secret", "token_until": "9e9"}
)


@pytest.fixture
def run_command(monkeypatch, tmp_path, capsys):
    """`await run_command("list")` runs the command beside the test's bot and returns its output."""

    def run_main(words: tuple[str, ...], folder: Path) -> int:
        monkeypatch.setattr("sys.argv", ["darkroom", "jobs", *words, "--data", str(folder)])
        with pytest.raises(SystemExit) as error:
            main()
        return int(error.value.code or 0)

    async def run(*words: str, is_refused: bool = False, folder: Path = tmp_path / "data") -> str:
        code = await asyncio.to_thread(run_main, words, folder)
        output = capsys.readouterr()
        assert code == (2 if is_refused else 0), output
        return " ".join(output.err.split()) if is_refused else output.out

    return run


async def wait_for(wait_until, web_app, job: str, state: str) -> None:
    async def has_state() -> bool:
        record = await web_app.store.get_job(job)
        return record.state == state

    await wait_until(has_state)


@pytest.mark.slow
@pytest.mark.asyncio
async def test_without_a_bot_jobs_are_listed_shown_and_explained(harness, run_command, ann):
    (harness.settings.data / "darkroom.sqlite").unlink()
    assert "There is no store in" in await run_command("list", is_refused=True)
    async with harness.open_temporary_app() as web_app:
        assert await run_command("list") == "There is no job yet.\n"
        (ann_job,) = await web_app.services.jobs.imagine("a lamp, red --seed 7 --no dust", ann, WEB)
        (bob_job,) = await web_app.services.jobs.imagine("a very long prompt " * 20, BOB, DISCORD)
    table = (await run_command("list")).splitlines()
    assert [line.split()[0] for line in table] == ["job", bob_job.job, ann_job.job]
    assert max(map(len, table)) <= 100
    assert table[1].rstrip().endswith("…")
    assert "\x1b" not in "".join(table)
    assert (await run_command("list", "--oldest")).splitlines()[1].startswith(ann_job.job)
    for words, expected_ids in (
        (("--guild", "7"), [bob_job.job]),
        (("--member", "5"), [bob_job.job]),
        (("--member", "local:ann"), [ann_job.job]),
        (("--state", "open"), [bob_job.job, ann_job.job]),
        (("--state", "running"), []),
        (("--limit", "1"), [bob_job.job]),
    ):
        assert [one["id"] for one in json.loads(await run_command("list", *words, "--json"))] == expected_ids, words
    assert await run_command("list", "--state", "over") == "There is no such job.\n"
    details = await run_command("show", ann_job.job.lower())
    for part in ("a lamp, red", "seed 7", "negative    dust", "queued", "imagine", "standard tier", "answer in web"):
        assert part in details, details
    sheet = await run_command("show", bob_job.job)
    assert "answer in discord (guild 7, channel 8, message 9): kept up to date" in sheet
    full_record = json.loads(await run_command("show", bob_job.job, "--json"))
    assert (full_record["recipe"]["steps"], full_record["states"][0]["target"]) == (1000, "queued")
    assert "very-secret" not in sheet + json.dumps(full_record)
    assert "No running bot answers on this data folder" in await run_command("why", bob_job.job)
    assert f"1 job ahead of it: Bob [2J's {bob_job.job}." in await run_command("why", ann_job.job)


@pytest.mark.slow
@pytest.mark.asyncio
async def test_each_mistake_is_answered_with_one_sentence(harness, run_command, ann):
    async with harness.open_temporary_app() as web_app:
        accepted_jobs = [(await web_app.services.jobs.imagine("a lamp", ann, WEB))[0] for _ in range(2)]
    common_prefix = accepted_jobs[0].job[:5]
    for words, sentence in (
        (("show", "zzz"), "There is no job ZZZ."),
        (("show", "no id!"), "“no id!” is no job's id: that has 26 letters and digits."),
        (("show", "%"), "is no job's id"),
        (("why", common_prefix), f"More than one job begins with {common_prefix}, among them "),
        (("list", "--state", "runing"), "“runing” is no state: there are queued, sent, running, finished, failed,"),
        (("list", "--limit", "0"), "Invalid value for '--limit'"),
        (("requeue", accepted_jobs[0].job), "It waits in the queue already."),
        (("show",), "Missing argument 'ID'"),
    ):
        assert sentence in await run_command(*words, is_refused=True), words
    assert "cancelled before it began; nothing was charged." in await run_command("cancel", accepted_jobs[0].job)
    for action in ("cancel", "requeue"):
        sentence = await run_command(action, accepted_jobs[0].job, is_refused=True)
        assert sentence == f"darkroom: Too late: job {accepted_jobs[0].job} has been cancelled already."
    assert (await run_command("why", accepted_jobs[0].job)).startswith("It does not wait: it was cancelled ")


@pytest.mark.slow
@pytest.mark.asyncio
async def test_a_running_bot_notices_a_cancelled_job(harness, run_command, ann, wait_until):
    web_app = await harness.open_app()
    (first_job,) = await web_app.services.jobs.imagine("a lamp", ann, WEB)
    (second_job,) = await web_app.services.jobs.imagine("a lamp", ann, WEB)
    assert (await web_app.services.job_views.load_view(second_job.job)).jobs_ahead == 1
    async with web_app.feed.subscribe(first_job.job) as events:
        await run_command("cancel", first_job.job)
        async for moment in events:
            if isinstance(moment, JobEnded):
                assert moment.state == "cancelled"
                break
    assert (await web_app.services.job_views.load_view(second_job.job)).jobs_ahead == 0
    worker, _ = await harness.start_worker()
    worker.run_gate.clear()
    await wait_for(wait_until, web_app, second_job.job, "running")
    output = await run_command("cancel", second_job.job)
    assert "a running bot tells its worker within seconds" in output
    await wait_for(wait_until, web_app, second_job.job, "cancelled")
    history = await web_app.store.query(queries.list_audit, [second_job.job])
    assert [entry.reason for entry in history if entry.source == entry.target] == ["cancelled at the command line"]
    record = await web_app.store.get_job(second_job.job)
    assert 0 < record.charged < record.cost
    outcome = {"outcome": "cancelled"}
    await wait_until(lambda: web_app.metrics.registry.get_sample_value("darkroom_job_seconds_count", outcome) == 2)


@pytest.mark.slow
@pytest.mark.asyncio
async def test_a_job_is_taken_from_its_worker_and_queued_again(harness, run_command, ann, wait_until):
    web_app = await harness.open_app()
    worker, _ = await harness.start_worker()
    worker.run_gate.clear()
    (accepted,) = await web_app.services.jobs.imagine("a lamp --count 1", ann, WEB)
    await wait_for(wait_until, web_app, accepted.job, "running")
    output = await run_command("requeue", accepted.job[:-1])
    bot_part = "a running bot takes it from fake-worker within seconds"
    assert output == f"Job {accepted.job} is in the queue again, as attempt 2; {bot_part}.\n"

    def sent_again() -> bool:
        run = web_app.queue.active_jobs.by_id.get(accepted.job)
        return run is not None and run.record.attempt == 2

    await wait_until(sent_again)
    await wait_until(
        lambda: worker.started_jobs.count(accepted.job) == 2
    )  # its claim is gone, or no worker could start again
    audit_details = {"cause": "operator"}
    await wait_until(lambda: web_app.metrics.registry.get_sample_value("darkroom_requeues_total", audit_details) == 1)
    worker.run_gate.set()
    await wait_for(wait_until, web_app, accepted.job, "finished")
    details = await run_command("show", accepted.job)
    assert "asked for at the command line" in details
    assert "image 1: 64×64" in details


@pytest.mark.may_block("the room announces itself once, in a small file")
@pytest.mark.asyncio
async def test_why_asks_the_running_bot(harness, run_command, ann, wait_until):
    app = await harness.open_app()
    worker, _ = await harness.start_worker()
    await wait_until(lambda: app.services.live_workers())  # else a job has the steps of the shipped model
    worker.run_gate.clear()
    accepted_jobs = [(await app.services.jobs.imagine("a lamp --count 4", ann, WEB))[0] for _ in range(4)]
    await wait_until(lambda: len(worker.started_jobs) == 3)
    await wait_for(wait_until, app, accepted_jobs[0].job, "running")
    settings = harness.settings
    web_app = await asyncio.to_thread(build_app, settings, app.services)
    async with run_server(web_app, "127.0.0.1", 0) as port:
        with announce_address(settings, port):
            answer = json.loads(await run_command("why", accepted_jobs[3].job, "--json"))
            running_answer = await run_command("why", accepted_jobs[0].job)
    assert answer["has_bot"] is True
    assert answer["eta"] > 0
    assert "3 of this member's run already: one of them must end first." in answer["sentence"]
    assert running_answer.startswith("It does not wait: fake-worker has it, at step 0 of 40; done in about ")
