"""`darkroom worker-key` with a real broker and bot: a worker with a key runs whole jobs and spoils no others."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pytest

from bot.__main__ import app
from bot.app.settings import load_settings
from bot.cli.up.broker_setup import parse_listen_address
from bot.cli.worker_keys import key_admin
from bot.domain.errors import UserError
from engine.bus import Bus, BusLimits, subjects
from engine.contract import JobFailed, JobFinished, JobStarted, encode

LEASE = 1.0


def run_worker_key(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    app(["worker-key", *args], standalone_mode=False)
    return capsys.readouterr().out


def test_the_command_makes_lists_and_revokes_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here = ("--data", str(tmp_path))
    assert run_worker_key(capsys, "--list", *here) == "No worker has a key.\n"
    text = run_worker_key(capsys, "far", "--pools", "default,big", *here)
    (seed,) = re.findall(r"^  (SU[A-Z2-7]{56})$", text, re.MULTILINE)
    assert f"DARKROOM_NATS_KEY={seed} darkroom engine --nats nats://HOST:PORT --name far --pool default" in text
    assert "reads the keys when it starts" in text
    assert "DARKROOM_NATS_LISTEN" in text
    assert seed not in (tmp_path / "worker-keys.json").read_text()
    (known,) = json.loads(run_worker_key(capsys, "--list", "--json", *here))
    assert (known["name"], known["pools"]) == ("far", ["default", "big"])
    assert known["public"] in (tmp_path / "worker-keys.json").read_text()
    assert re.match(r"far +\d{4}-\d\d-\d\d  default,big\n", run_worker_key(capsys, "--list", *here))
    assert "is revoked" in run_worker_key(capsys, "far", "--revoke", *here)
    assert run_worker_key(capsys, "--list", *here) == "No worker has a key.\n"


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        ((), "Name one worker"),
        (("far", "--list"), "Name one worker"),
        (("far away",), "have names of up to 64"),
        (("far", "--pools", ","), "1 to 16 pools"),
        (("here",), "this machine's own worker"),
        (("far", "--revoke"), "No worker named far has a key"),
    ],
)
def test_mistakes_are_refused_in_one_sentence(args: tuple[str, ...], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=sentence):
        app(["worker-key", *args, "--data", str(tmp_path)], standalone_mode=False)


def test_for_an_external_broker_the_command_prints_its_configuration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DARKROOM_NATS", "tls://broker.example:4222")
    output = json.loads(run_worker_key(capsys, "far", "--json", "--data", str(tmp_path)))
    assert output["user"]["nkey"] == output["public"]
    allowed = output["user"]["permissions"]["publish"]["allow"]
    assert "results.far.*" in allowed
    assert [one for one in allowed if one.startswith("$KV.workers.")] == ["$KV.workers.far.default"]
    assert "--nats tls://broker.example:4222 --name far" in output["command"]
    (account,) = output["account"].values()
    assert account["users"] == [output["user"]]
    imported = [one["service"]["subject"] for one in account["imports"] if "service" in one and "to" not in one]
    assert imported == [*allowed, "vectors.*"]
    assert {"service": "results.*.*"} in output["exports"]
    text = run_worker_key(capsys, "near", "--data", str(tmp_path))
    assert '  "worker-near" {"users": [{"nkey": "U' in text
    assert '  exports: [{"service": "results.*.*"}, ' in text
    assert "twice" in text
    assert "tls://broker.example:4222, too" in run_worker_key(capsys, "far", "--revoke", "--data", str(tmp_path))


@pytest.mark.parametrize(
    ("listen", "near", "shown"),
    [
        ("", "127.0.0.1", "nats://HOST:PORT"),
        ("10.0.0.5:4222", "10.0.0.5", "nats://10.0.0.5:4222"),
        ("100.101.102.103:4222", "100.101.102.103", "nats://100.101.102.103:4222"),
        ("[fd00::5]:4222", "fd00::5", "nats://[fd00::5]:4222"),
    ],
)
def test_the_broker_listens_where_the_setting_says(tmp_path: Path, listen: str, near: str, shown: str) -> None:
    settings = load_settings(data=tmp_path, nats_listen=listen)
    assert parse_listen_address(settings).local_host == near
    assert key_admin.broker_address(settings) == shown


@pytest.mark.parametrize("listen", ["0.0.0.0:4222", "[::]:4222", "93.184.216.34:4222", "example.org:4222"])
def test_a_public_address_needs_a_certificate(tmp_path: Path, listen: str) -> None:
    with pytest.raises(UserError, match="others could read the pictures"):
        parse_listen_address(load_settings(data=tmp_path, nats_listen=listen))
    certificate = tmp_path / "broker.pem"
    settings = load_settings(data=tmp_path, nats_listen=listen, nats_cert=certificate, nats_cert_key=certificate)
    with pytest.raises(UserError, match="there is no file"):
        parse_listen_address(settings)
    certificate.touch()
    assert parse_listen_address(settings).certificate == certificate
    assert key_admin.broker_address(settings).startswith("tls://")


@pytest.mark.parametrize("listen", ["10.0.0.5", "10.0.0.5:0", "10.0.0.5:99999", ":4222", "10.0.0.5:4222/x"])
def test_an_address_without_a_valid_port_is_refused(tmp_path: Path, listen: str) -> None:
    with pytest.raises(UserError, match="an address and a port"):
        parse_listen_address(load_settings(data=tmp_path, nats_listen=listen))
    with pytest.raises(UserError, match="go together"):
        parse_listen_address(load_settings(data=tmp_path, nats_cert=tmp_path))


@pytest.fixture
def hire(workplace: Any, tmp_path: Path) -> Any:
    """Makes a key with the command while the broker runs, and a worker that connects with it."""

    async def make(name: str) -> Any:
        settings = load_settings(data=tmp_path)  # the workplace's broker lives in its `nats`
        output = json.loads(await asyncio.to_thread(key_admin.create_key, settings, name, "default", as_json=True))
        assert output["taken"]
        bus = await Bus.connect(workplace.broker.url, name=name, key=output["seed"], limits=BusLimits(lease=LEASE))
        workplace.stack.push_async_callback(bus.close)
        await bus.declare(["default"])
        return type(await workplace.hand(name))(bus, name)

    return make


def start_worker(worker: Any, workplace: Any) -> asyncio.Task[None]:
    task = asyncio.create_task(worker.run())

    async def stop() -> None:
        while not task.done():  # before Python 3.12 `asyncio.wait_for`, as in nats-py, may swallow a cancellation
            task.cancel()
            await asyncio.wait([task], timeout=1)
        assert task.cancelled() or task.exception() is not None

    workplace.stack.push_async_callback(stop)
    return task


@pytest.mark.slow
@pytest.mark.asyncio
async def test_a_worker_with_a_key_finishes_a_job_and_hands_one_over_when_revoked(
    workplace, hire, tmp_path, until, ann, here
):
    bot_app = await workplace.house()
    far = await hire("far")
    await far.announce()
    start_worker(far, workplace)
    await until(lambda: bot_app.services.live_workers())
    (first,) = await bot_app.services.jobs.imagine("a lamp --count 1", ann, here)

    async def is_finished(job: str, worker: str) -> bool:
        record = await bot_app.store.get_job(job)
        return (record.state, record.worker) == ("finished", worker)

    await until(lambda: is_finished(first.job, "far"), 15)
    assert far.bus.client.last_error is None
    far.go.clear()
    (second,) = await bot_app.services.jobs.imagine("a tree --count 1", ann, here)
    await until(lambda: second.job in far.begun)
    reply = await asyncio.to_thread(key_admin.revoke_key, load_settings(data=tmp_path), "far", as_json=False)
    assert "has closed its connection" in reply
    await until(lambda: far.bus.client.is_closed)
    await workplace.worker("near")
    await until(lambda: is_finished(second.job, "near"), 20)


@pytest.mark.asyncio
async def test_a_worker_with_a_key_cannot_report_as_others_or_about_their_jobs(workplace, hire, until, ann, here):
    bot_app = await workplace.house()
    honest, _ = await workplace.worker("honest")
    honest.go.clear()
    await until(lambda: bot_app.services.live_workers())
    (ticket,) = await bot_app.services.jobs.imagine("a lamp --count 1", ann, here)
    job = ticket.job
    await until(lambda: job in bot_app.queue.active_jobs.by_id and bot_app.queue.active_jobs.by_id[job].is_claimed)
    epoch = bot_app.queue.active_jobs.by_id[job].record.epoch
    evil = await hire("evil")
    await evil.say(JobStarted(job=job, epoch=epoch, worker="honest"))
    await evil.say(JobStarted(job=job, epoch=epoch, worker="evil"))
    await evil.say(JobFailed(job=job, epoch=epoch, reason="Spoilt.", blame="member"))
    await evil.say(JobFinished(job=job, epoch=epoch, cost=9.0, seconds=1.0, ms_per_step=1.0))
    subject = subjects.result("evil", "01ARZ3NDEKTSV4RRFFQ69G5FAV")
    await evil.bus.js.publish(subject, encode(JobFailed(job=job, epoch=epoch + 1, reason="Spoilt.", blame="member")))
    await until(lambda: bot_app.bus.dead_letters.count["results"] == 5)
    honest.go.set()

    async def is_over() -> bool:
        return (await bot_app.store.get_job(job)).state != "running"

    await until(is_over)
    record = await bot_app.store.get_job(job)
    assert (record.state, record.worker, record.reason, record.attempt) == ("finished", "honest", "", 1)
