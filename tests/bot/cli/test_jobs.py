"""`darkroom jobs`: what the operator reads and does, without a bot and beside a running one."""

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
def darkroom(monkeypatch, tmp_path, capsys):
    """`await darkroom("list")` runs the command beside whatever runs here and returns its output."""

    def run_main(words: tuple[str, ...], folder: Path) -> int:
        monkeypatch.setattr("sys.argv", ["darkroom", "jobs", *words, "--data", str(folder)])
        with pytest.raises(SystemExit) as exit_info:
            main()
        return int(exit_info.value.code or 0)

    async def run(*words: str, fails: bool = False, folder: Path = tmp_path / "data") -> str:
        code = await asyncio.to_thread(run_main, words, folder)
        output = capsys.readouterr()
        assert code == (2 if fails else 0), output
        return " ".join(output.err.split()) if fails else output.out

    return run


async def wait_for(until, house, job: str, state: str) -> None:
    async def has_state() -> bool:
        record = await house.store.get_job(job)
        return record.state == state

    await until(has_state)


@pytest.mark.slow
@pytest.mark.asyncio
async def test_without_a_bot_jobs_are_listed_shown_and_explained(workplace, darkroom, ann):
    assert "There is no store in" in await darkroom("list", fails=True)
    async with workplace.visit() as house:
        assert await darkroom("list") == "There is no job yet.\n"
        (mine,) = await house.services.jobs.imagine("a lamp, red --seed 7 --no dust", ann, WEB)
        (theirs,) = await house.services.jobs.imagine("a very long prompt " * 20, BOB, DISCORD)
    table = (await darkroom("list")).splitlines()
    assert [line.split()[0] for line in table] == ["job", theirs.job, mine.job]
    assert max(map(len, table)) <= 100
    assert table[1].rstrip().endswith("…")
    assert "\x1b" not in "".join(table)
    assert (await darkroom("list", "--oldest")).splitlines()[1].startswith(mine.job)
    for words, found in (
        (("--guild", "7"), [theirs.job]), (("--member", "5"), [theirs.job]), (("--member", "local:ann"), [mine.job]),
        (("--state", "open"), [theirs.job, mine.job]), (("--state", "running"), []), (("--limit", "1"), [theirs.job]),
    ):  # fmt: skip
        assert [one["id"] for one in json.loads(await darkroom("list", *words, "--json"))] == found, words
    assert await darkroom("list", "--state", "over") == "There is no such job.\n"
    details = await darkroom("show", mine.job.lower())
    for part in ("a lamp, red", "seed 7", "negative    dust", "queued", "imagine", "standard tier", "answer in web"):
        assert part in details, details
    sheet = await darkroom("show", theirs.job)
    assert "answer in discord (guild 7, channel 8, message 9): kept up to date" in sheet
    whole = json.loads(await darkroom("show", theirs.job, "--json"))
    assert (whole["recipe"]["steps"], whole["states"][0]["target"]) == (1000, "queued")
    assert "very-secret" not in sheet + json.dumps(whole)
    assert "No running bot answers on this data folder" in await darkroom("why", theirs.job)
    assert f"1 job ahead of it: Bob [2J's {theirs.job}." in await darkroom("why", mine.job)


@pytest.mark.slow
@pytest.mark.asyncio
async def test_each_mistake_is_answered_with_one_sentence(workplace, darkroom, ann):
    async with workplace.visit() as house:
        tickets = [(await house.services.jobs.imagine("a lamp", ann, WEB))[0] for _ in range(2)]
    same = tickets[0].job[:5]
    for words, sentence in (
        (("show", "zzz"), "There is no job ZZZ."),
        (("show", "no id!"), "“no id!” is no job's id: that has 26 letters and digits."),
        (("show", "%"), "is no job's id"),
        (("why", same), f"More than one job begins with {same}, among them "),
        (("list", "--state", "runing"), "“runing” is no state: there are queued, sent, running, finished, failed,"),
        (("list", "--limit", "0"), "Invalid value for '--limit'"),
        (("requeue", tickets[0].job), "It waits in the queue already."),
        (("show",), "Missing argument 'ID'"),
    ):
        assert sentence in await darkroom(*words, fails=True), words
    assert "cancelled before it began; nothing was charged." in await darkroom("cancel", tickets[0].job)
    for deed in ("cancel", "requeue"):
        sentence = await darkroom(deed, tickets[0].job, fails=True)
        assert sentence == f"darkroom: Too late: job {tickets[0].job} has been cancelled already."
    assert (await darkroom("why", tickets[0].job)).startswith("It does not wait: it was cancelled ")


@pytest.mark.slow
@pytest.mark.asyncio
async def test_a_running_bot_notices_a_cancelled_job(workplace, darkroom, ann, until):
    house = await workplace.house()
    (waiting,) = await house.services.jobs.imagine("a lamp", ann, WEB)
    (behind,) = await house.services.jobs.imagine("a lamp", ann, WEB)
    assert (await house.services.job_views.load_view(behind.job)).jobs_ahead == 1
    async with house.feed.subscribe(waiting.job) as moments:
        await darkroom("cancel", waiting.job)
        async for moment in moments:
            if isinstance(moment, JobEnded):
                assert moment.state == "cancelled"
                break
    assert (await house.services.job_views.load_view(behind.job)).jobs_ahead == 0
    apprentice, _ = await workplace.worker()
    apprentice.go.clear()
    await wait_for(until, house, behind.job, "running")
    output = await darkroom("cancel", behind.job)
    assert "a running bot tells its worker within seconds" in output
    await wait_for(until, house, behind.job, "cancelled")
    history = await house.store.query(queries.list_audit, [behind.job])
    assert [entry.why for entry in history if entry.source == entry.target] == ["cancelled at the command line"]
    record = await house.store.get_job(behind.job)
    assert 0 < record.charged < record.cost
    outcome = {"outcome": "cancelled"}
    await until(lambda: house.metrics.registry.get_sample_value("darkroom_job_seconds_count", outcome) == 2)


@pytest.mark.slow
@pytest.mark.asyncio
async def test_a_job_is_taken_from_its_worker_and_queued_again(workplace, darkroom, ann, until):
    house = await workplace.house()
    apprentice, _ = await workplace.worker()
    apprentice.go.clear()
    (ticket,) = await house.services.jobs.imagine("a lamp --count 1", ann, WEB)
    await wait_for(until, house, ticket.job, "running")
    output = await darkroom("requeue", ticket.job[:-1])
    bot_part = "a running bot takes it from apprentice within seconds"
    assert output == f"Job {ticket.job} is in the queue again, as attempt 2; {bot_part}.\n"

    def sent_again() -> bool:
        run = house.queue.active_jobs.by_id.get(ticket.job)
        return run is not None and run.record.attempt == 2

    await until(sent_again)
    await until(lambda: apprentice.begun.count(ticket.job) == 2)  # its claim is gone, or no worker could start again
    returned = {"cause": "operator"}
    await until(lambda: house.metrics.registry.get_sample_value("darkroom_requeues_total", returned) == 1)
    apprentice.go.set()
    await wait_for(until, house, ticket.job, "finished")
    details = await darkroom("show", ticket.job)
    assert "asked for at the command line" in details
    assert "image 1: 64×64" in details


@pytest.mark.may_block("the room announces itself once, in a small file")
@pytest.mark.asyncio
async def test_why_asks_the_running_bot(workplace, darkroom, ann, until):
    house = await workplace.house()
    apprentice, _ = await workplace.worker()
    apprentice.go.clear()
    tickets = [(await house.services.jobs.imagine("a lamp --count 4", ann, WEB))[0] for _ in range(4)]
    await until(lambda: len(apprentice.begun) == 3)
    await wait_for(until, house, tickets[0].job, "running")
    settings = workplace.settings
    app = await asyncio.to_thread(build_app, settings, house.services)
    async with run_server(app, "127.0.0.1", 0) as port:
        with announce_address(settings, port):
            answer = json.loads(await darkroom("why", tickets[3].job, "--json"))
            running = await darkroom("why", tickets[0].job)
    assert answer["has_bot"] is True
    assert answer["eta"] > 0
    assert "3 of this member's run already: one of them must end first." in answer["sentence"]
    assert running.startswith("It does not wait: apprentice has it, at step 0 of 40; done in about ")
