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
from bot.domain.errors import UserError
from bot.features.worker_keys import key_admin
from engine.bus import Bus, BusLimits, subjects
from engine.contract import JobFailed, JobFinished, JobStarted, encode
from shared.active_jobs import is_claimed

LEASE = 1.0


def run_worker_key(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    app(["worker-key", *args], standalone_mode=False)
    return capsys.readouterr().out


def test_the_command_makes_lists_and_revokes_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data_options = ("--data", str(tmp_path))
    assert run_worker_key(capsys, "--list", *data_options) == "No worker has a key.\n"
    text = run_worker_key(capsys, "far", "--pools", "default,big", *data_options)
    (seed,) = re.findall(r"^  (SU[A-Z2-7]{56})$", text, re.MULTILINE)
    assert f"DARKROOM_NATS_KEY={seed} darkroom engine --nats nats://HOST:PORT --name far --pool default" in text
    assert "reads the keys when it starts" in text
    assert "DARKROOM_NATS_LISTEN" in text
    assert seed not in (tmp_path / "worker-keys.json").read_text()
    (worker_key,) = json.loads(run_worker_key(capsys, "--list", "--json", *data_options))
    assert (worker_key["name"], worker_key["pools"]) == ("far", ["default", "big"])
    assert worker_key["public"] in (tmp_path / "worker-keys.json").read_text()
    assert re.match(r"far +\d{4}-\d\d-\d\d  default,big\n", run_worker_key(capsys, "--list", *data_options))
    assert "is revoked" in run_worker_key(capsys, "far", "--revoke", *data_options)
    assert run_worker_key(capsys, "--list", *data_options) == "No worker has a key.\n"


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
    allowed_subjects = output["user"]["permissions"]["publish"]["allow"]
    assert "results.far.*" in allowed_subjects
    assert [one for one in allowed_subjects if one.startswith("$KV.workers.")] == ["$KV.workers.far.default"]
    assert "--nats tls://broker.example:4222 --name far" in output["command"]
    (account,) = output["account"].values()
    assert account["users"] == [output["user"]]
    imported_subjects = [
        one["service"]["subject"] for one in account["imports"] if "service" in one and "to" not in one
    ]
    assert imported_subjects == [*allowed_subjects, "vectors.*"]
    assert {"service": "results.*.*"} in output["exports"]
    text = run_worker_key(capsys, "near", "--data", str(tmp_path))
    assert '  "worker-near" {"users": [{"nkey": "U' in text
    assert '  exports: [{"service": "results.*.*"}, ' in text
    assert "twice" in text
    assert "tls://broker.example:4222, too" in run_worker_key(capsys, "far", "--revoke", "--data", str(tmp_path))


@pytest.mark.parametrize(
    ("listen", "local_url", "printed_url"),
    [
        ("", "127.0.0.1", "nats://HOST:PORT"),
        ("10.0.0.5:4222", "10.0.0.5", "nats://10.0.0.5:4222"),
        ("100.101.102.103:4222", "100.101.102.103", "nats://100.101.102.103:4222"),
        ("[fd00::5]:4222", "fd00::5", "nats://[fd00::5]:4222"),
    ],
)
def test_the_broker_listens_where_the_setting_says(
    tmp_path: Path, listen: str, local_url: str, printed_url: str
) -> None:
    settings = load_settings(data=tmp_path, nats_listen=listen)
    assert parse_listen_address(settings).local_host == local_url
    assert key_admin.broker_address(settings) == printed_url


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
def create_worker(harness: Any, tmp_path: Path) -> Any:
    """Makes a key with the command while the broker runs, and a worker that connects with it."""

    async def make(name: str) -> Any:
        settings = load_settings(data=tmp_path)  # the harness keeps its broker in the folder `nats`
        output = json.loads(await asyncio.to_thread(key_admin.create_key, settings, name, "default", as_json=True))
        assert output["taken"]
        bus = await Bus.connect(harness.broker.url, name=name, key=output["seed"], limits=BusLimits(lease=LEASE))
        harness.stack.push_async_callback(bus.close)
        await bus.declare(["default"])
        return type(await harness.make_worker(name))(bus, name)

    return make


def start_worker(worker: Any, harness: Any) -> asyncio.Task[None]:
    task = asyncio.create_task(worker.run())

    async def stop() -> None:
        while not task.done():  # before Python 3.12 `asyncio.wait_for`, as in nats-py, may swallow a cancellation
            task.cancel()
            await asyncio.wait([task], timeout=1)
        assert task.cancelled() or task.exception() is not None

    harness.stack.push_async_callback(stop)
    return task


@pytest.mark.slow
@pytest.mark.asyncio
async def test_a_worker_with_a_key_finishes_a_job_and_hands_one_over_when_revoked(
    harness, create_worker, tmp_path, wait_until, ann, destination
):
    bot_app = await harness.open_app()
    remote_worker = await create_worker("far")
    await remote_worker.announce()
    start_worker(remote_worker, harness)
    await wait_until(lambda: bot_app.services.live_workers())
    (first,) = await bot_app.services.jobs.imagine("a lamp --count 1", ann, destination)

    async def is_finished(job: str, worker: str) -> bool:
        record = await bot_app.store.get_job(job)
        return (record.state, record.worker) == ("finished", worker)

    await wait_until(lambda: is_finished(first.job, "far"), 15)
    assert remote_worker.bus.client.last_error is None
    remote_worker.run_gate.clear()
    (second,) = await bot_app.services.jobs.imagine("a tree --count 1", ann, destination)
    await wait_until(lambda: second.job in remote_worker.started_jobs)
    reply = await asyncio.to_thread(key_admin.revoke_key, load_settings(data=tmp_path), "far", as_json=False)
    assert "has closed its connection" in reply
    await wait_until(lambda: remote_worker.bus.client.is_closed)
    await harness.start_worker("near")
    await wait_until(lambda: is_finished(second.job, "near"), 20)


@pytest.mark.asyncio
async def test_a_worker_with_a_key_cannot_report_as_others_or_about_their_jobs(
    harness, create_worker, wait_until, ann, destination
):
    bot_app = await harness.open_app()
    honest_worker, _ = await harness.start_worker("honest")
    honest_worker.run_gate.clear()
    await wait_until(lambda: bot_app.services.live_workers())
    (accepted,) = await bot_app.services.jobs.imagine("a lamp --count 1", ann, destination)
    job = accepted.job
    await wait_until(lambda: is_claimed(bot_app, job))
    epoch = bot_app.queue.active_jobs.by_id[job].record.epoch
    evil_worker = await create_worker("evil")
    await evil_worker.publish_result(JobStarted(job=job, epoch=epoch, worker="honest"))
    await evil_worker.publish_result(JobStarted(job=job, epoch=epoch, worker="evil"))
    await evil_worker.publish_result(JobFailed(job=job, epoch=epoch, reason="Spoilt.", blame="member"))
    await evil_worker.publish_result(JobFinished(job=job, epoch=epoch, cost=9.0, seconds=1.0, ms_per_step=1.0))
    subject = subjects.make_result_subject("evil", "01ARZ3NDEKTSV4RRFFQ69G5FAV")
    await evil_worker.bus.js.publish(
        subject, encode(JobFailed(job=job, epoch=epoch + 1, reason="Spoilt.", blame="member"))
    )
    await wait_until(lambda: bot_app.bus.dead_letters.count["results"] == 5)
    honest_worker.run_gate.set()

    async def is_over() -> bool:
        return (await bot_app.store.get_job(job)).state != "running"

    await wait_until(is_over)
    record = await bot_app.store.get_job(job)
    assert (record.state, record.worker, record.reason, record.attempt) == ("finished", "honest", "", 1)
