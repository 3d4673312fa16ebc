"""Workers' keys with the real server: a key opens its worker's part of the broker and nothing else, until revoked."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import stat
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from engine.bus import Bus, Ended, Kept, Unreachable, keys
from engine.bus.broker import Broker, BrokerError
from engine.bus.enrolment import Enrolment
from engine.bus.keys import BadKey
from engine.bus.link import Right
from engine.bus.server import Listening, free_port, server_path
from engine.job import (
    Concept,
    Frame,
    Job,
    Loading,
    Presence,
    Recipe,
    Share,
    Snapshot,
    Started,
    Steer,
    encode,
)  # fmt: skip

LEASE = 1.0
JOB = "01ARZ3NDEKTSV4RRFFQ69G5FAV"
OTHER = "01ARZ3NDEKTSV4RRFFQ69G5FAW"
DAY = "2026-11-26"
SEED = keys.make("far", ["default"], DAY)[1]


def a_job(job: str = JOB, pool: str = "default") -> Job:
    task = Recipe(
        concepts=(Concept("a cat"),), model="embedded", sampler="ddim", steps=4, seed=1, guidance=4.0, width=64,
        height=64, dtype="float32",
    )  # fmt: skip
    return Job(id=job, task=task, share=Share("standard", "guild", "ann"), cost=1.0, deadline=2e9, pool=pool)


def a_presence(name: str) -> Presence:
    return Presence(worker=name, pools=("default",), models=(), device="none", rows=1, free=1, build="test")


async def until(true: Callable[[], object], seconds: float = 10.0) -> None:
    async with asyncio.timeout(seconds):
        while not true():
            await asyncio.sleep(0.02)


class Site:
    """A broker, its keys, and as many connections as a test wants."""

    def __init__(self, stack: AsyncExitStack, folder: Path, broker: Broker) -> None:
        self._stack, self.folder, self.broker = stack, folder, broker
        self.file = folder / "worker-keys.json"
        self.enrolment = Enrolment(self.file, folder / "nats")

    async def key(self, name: str, *pools: str) -> str:
        _, seed, taken = await asyncio.to_thread(self.enrolment.enrol, name, pools or ("default",), DAY)
        assert taken
        return seed

    async def revoke(self, name: str) -> None:
        assert await asyncio.to_thread(self.enrolment.revoke, name)

    async def join(self, name: str = "darkroom", key: str = "", *, pools: tuple[str, ...] = ("default",)) -> Bus:
        """As the bot, or with a key as the worker that it is for."""
        token = "" if key else self.broker.token
        bus = await Bus.connect(self.broker.url, token, name=name, key=key, kept=Kept(lease=LEASE), patience=3.0)
        self._stack.push_async_callback(bus.close)
        await bus.declare(pools)
        return bus


@pytest_asyncio.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with AsyncExitStack() as stack:
        broker = await stack.enter_async_context(Broker(tmp_path / "nats", workers=tmp_path / "worker-keys.json"))
        yield Site(stack, tmp_path, broker)


async def heard(source: AsyncIterator[Any], say: Callable[[], Any]) -> Any:
    """The first value of an iterator, while `say` is repeated until it comes."""
    coming = asyncio.ensure_future(anext(source))
    async with asyncio.timeout(10):
        while not coming.done():
            await say()
            await asyncio.wait((coming,), timeout=0.1)
    await source.aclose()  # pyright: ignore[reportAttributeAccessIssue]
    return coming.result()


@pytest.mark.asyncio
async def test_a_key_opens_all_that_a_worker_does(site: Site) -> None:
    bot = await site.join()
    await bot.watch_workers()
    worker = await site.join("far.away", await site.key("far.away", "default", "big"), pools=("default", "big"))
    waiting = asyncio.create_task(worker.pull(["default", "big"], timeout=8))
    assert await bot.dispatch(a_job())
    delivered = await waiting
    assert delivered is not None
    claim = await worker.claim(JOB, "far.away")
    assert claim is not None
    assert await worker.renew(claim)
    assert (await worker.holder(JOB)) is not None
    await delivered.in_progress()
    await worker.announce(a_presence("far.away"))
    await until(lambda: "far.away" in bot.workers)
    await worker.publish_result("far.away", Started(job=JOB, epoch=claim.epoch, worker="far.away"))
    async for told in bot.results():
        assert told.value == Started(job=JOB, epoch=claim.epoch, worker="far.away")
        await told.ack()
        break
    await _keeps(worker, bot, claim.epoch)
    await _hears(worker, bot)
    await delivered.ack()
    await worker.release(claim)
    await worker.depart("far.away")
    await until(lambda: not bot.workers)
    await worker.stop_pulling()
    assert worker.client.last_error is None


async def _keeps(worker: Bus, bot: Bus, epoch: int) -> None:
    """Snapshots, small and large, and blobs: written, read, dropped, and written again."""
    for content in (b"small", os.urandom(2 * 1024 * 1024 + 7)):
        assert await bot.get_blob(await worker.put_blob(content), len(content)) == content
    for k, size in ((1, 16), (2, 7 * 1024 * 1024), (3, 16)):
        one = Snapshot(job=JOB, image=1, epoch=epoch, k=k, shape=(1, 4), x=b"x" * size, h=b"")
        await worker.put_snapshot(one)
        assert await bot.get_snapshots(JOB) == [one]
    await worker.drop_snapshots(JOB)
    assert await bot.get_snapshots(JOB) == []
    await worker.put_snapshot(one)
    assert await worker.get_snapshots(JOB) == [one]
    assert (await bot.js.stream_info("OBJ_blobs")).state.bytes < 7 * 1024 * 1024
    await bot.drop_snapshots(JOB)


async def _hears(worker: Bus, bot: Bus) -> None:
    async def embed(texts: Any) -> Any:
        return [[1.0]] * len(texts)

    await worker.serve_embed(embed)
    await worker.client.flush()
    assert await bot.embed(["a word"]) == ((1.0,),)
    assert await heard(worker.wants(), lambda: bot.want(JOB)) == JOB
    assert (await heard(worker.steers(), lambda: bot.steer(Steer(job=JOB, deed="pause")))).deed == "pause"
    assert await heard(worker.watch_cancelled(), lambda: bot.cancel(OTHER)) == OTHER
    assert await worker.is_cancelled(OTHER)
    frame = Frame(job=JOB, image=0, epoch=1, step=1, of=4, picture=b"\xff\xd8\xff", seconds_left=1.0)
    assert await heard(bot.frames(), lambda: worker.publish_frame(frame)) == frame
    loading = Loading(job=JOB, epoch=1, model="embedded", done=0.5)
    assert await heard(bot.loadings(), lambda: worker.publish_loading(loading)) == loading


FORBIDDEN = [
    f"results.other.{JOB}", "results.far", f"results.far.{JOB}.more", f"work.default.{JOB}.1", f"work.big.{JOB}.1",
    f"$KV.cancelled.{JOB}", "$KV.workers.other", "$KV.leaders.bot", f"want.{JOB}", f"steer.{JOB}", "embed",
    "dead.results.far", f"dead.work.big.{JOB}.1", "_INBOX.other.1", "$JS.ACK.work.pool-big.1.1.1.1.0",
    "$JS.ACK.results.settle.1.1.1.1.0", "$JS.API.INFO", "$JS.API.STREAM.NAMES", "$JS.API.STREAM.LIST",
    *(
        f"$JS.API.STREAM.{deed}.{stream}"
        for deed in ("CREATE", "UPDATE", "DELETE", "PURGE", "INFO", "MSG.GET", "MSG.DELETE", "SNAPSHOT")
        for stream in ("work", "results", "KV_claims", "KV_snapshots", "OBJ_blobs")
    ),
    "$JS.API.DIRECT.GET.results", f"$JS.API.DIRECT.GET.results.results.other.{JOB}", "$JS.API.DIRECT.GET.KV_snapshots",
    "$JS.API.DIRECT.GET.work", "$JS.API.DIRECT.GET.KV_workers.$KV.workers.other",
    "$JS.API.CONSUMER.CREATE.work", "$JS.API.CONSUMER.CREATE.work.pool-default.work.>",
    "$JS.API.CONSUMER.DURABLE.CREATE.work.pool-default", "$JS.API.CONSUMER.DELETE.work.pool-default",
    "$JS.API.CONSUMER.PAUSE.work.pool-default", "$JS.API.CONSUMER.LIST.work", "$JS.API.CONSUMER.MSG.NEXT.work.pool-big",
    "$JS.API.CONSUMER.INFO.work.pool-big", "$JS.API.CONSUMER.MSG.NEXT.results.settle", "$SYS.REQ.SERVER.PING",
]  # fmt: skip
DEAF = [
    ">", "results.>", "work.>", "$KV.>", "$KV.claims.>", "$KV.workers.*", "_INBOX.>", "_INBOX.*.*", "_INBOX.other.>",
    "frames.*", "loading.*", "embed", "$JS.>", "$SYS.>", "dead.>",
]  # fmt: skip


@pytest.mark.asyncio
async def test_a_key_opens_nothing_else(site: Site) -> None:
    bot = await site.join()
    await bot.dispatch(a_job(OTHER, pool="big"))
    worker = await site.join("far", await site.key("far"))
    client, refused = worker.client, set[str]()
    said: list[str] = []

    async def note(error: Exception) -> None:
        said.append(str(error))

    client._error_cb = note
    for subject in FORBIDDEN:
        await client.publish(subject, b"{}", f"_INBOX.far.{len(refused)}")
    for subject in DEAF:
        await client.subscribe(subject)
    await client.flush()
    await until(lambda: len(said) >= len(FORBIDDEN) + len(DEAF))
    found = [re.search(r'permissions violation for (publish|subscription) to "([^"]+)"', one) for one in said]
    refused = {(one[1], one[2]) for one in found if one}
    wanted = {("publish", one.lower()) for one in FORBIDDEN} | {("subscription", one.lower()) for one in DEAF}
    assert refused == wanted
    assert worker.connected
    for stream in ("results", "KV_cancelled", "KV_workers", "KV_leaders", "dead"):
        assert (await bot.js.stream_info(stream)).state.messages == 0, stream
    assert (await bot.js.stream_info("work")).state.messages == 1


@pytest.mark.asyncio
async def test_an_answer_that_is_sent_elsewhere_is_taken_for_no_word_of_anybody(site: Site) -> None:
    """Who may read a snapshot may name any subject as the inbox, and what is in a snapshot he has written himself."""
    bot = await site.join()
    await bot.watch_workers()
    worker = await site.join("far", await site.key("far"))
    forged = {
        f"results.other.{JOB}": encode(Started(job=JOB, epoch=1, worker="other")),
        f"work.big.{JOB}.1": encode(a_job(pool="big")),
        "$KV.workers.other": encode(a_presence("other")),
    }
    for number, (subject, content) in enumerate(forged.items()):
        key = f"$KV.snapshots.{JOB}.{number}"
        await worker.js.publish(key, content)
        await worker.client.publish(f"$JS.API.DIRECT.GET.KV_snapshots.{key}", b"", reply=subject)
    await worker.client.flush()
    await bot.publish_result("true", Started(job=OTHER, epoch=1, worker="true"))
    async for told in bot.results():
        assert told.value == Started(job=OTHER, epoch=1, worker="true")
        break
    assert await bot.pull(["big"], timeout=0.3) is None
    assert set(bot.workers) == set()
    assert set(bot.dead.count) <= {"results", "work"}


@pytest.mark.asyncio
async def test_nobody_announces_a_worker_in_anothers_name(site: Site) -> None:
    bot = await site.join()
    await bot.watch_workers()
    worker = await site.join("far", await site.key("far"))
    await worker.js.publish("$KV.workers.far", encode(a_presence("other")))
    late = await site.join()
    await late.watch_workers()
    assert (set(bot.workers), set(late.workers)) == (set(), set())


@pytest.mark.asyncio
async def test_a_revoked_worker_is_closed_and_another_has_its_job(site: Site) -> None:
    bot = await site.join()
    await bot.dispatch(a_job())
    far = await site.join("far", await site.key("far"))
    near = await site.join("near", await site.key("near"))
    process, socket = site.broker.pid, near.client.stats["reconnects"]
    mine = await far.pull(["default"], timeout=5)
    assert mine is not None
    assert await far.claim(JOB, "far")
    holding = [asyncio.create_task(bus.hold()) for bus in (far, near, bot)]
    await site.revoke("far")
    with pytest.raises(Ended, match=r"(?i)authorization violation"):
        await asyncio.wait_for(holding[0], 10)
    again = await near.pull(["default"], timeout=LEASE * 5)
    assert again is not None
    assert again.value.id == JOB
    async with asyncio.timeout(LEASE * 5):
        while await near.claim(JOB, "near") is None:
            await asyncio.sleep(0.05)
    assert not holding[1].done()
    assert not holding[2].done()
    assert (near.client.stats["reconnects"], bot.client.stats["reconnects"]) == (socket, 0)
    assert (site.broker.pid, site.broker.restarts) == (process, 0)
    for task in holding[1:]:
        task.cancel()
    await asyncio.gather(*holding[1:], return_exceptions=True)


@pytest.mark.asyncio
async def test_a_key_is_for_one_name_and_its_pools_and_no_longer_than_it_is_known(site: Site) -> None:
    await site.join()
    key = await site.key("far")
    with pytest.raises(Unreachable, match=r"does not let this key serve big.*pool-big"):
        await site.join("far", key, pools=("default", "big"))
    with pytest.raises(Unreachable, match="does not let this key serve default"):
        await site.join("other", key)
    await site.revoke("far")
    with pytest.raises(Unreachable, match=r"(?i)authorization"):
        await site.join("far", key)
    with pytest.raises(BadKey, match="No worker named far has a key"):
        await site.revoke("far")


@pytest.mark.asyncio
async def test_keys_outlive_broker_and_store_and_a_crash_of_the_server(tmp_path: Path) -> None:
    file, folder = tmp_path / "worker-keys.json", tmp_path / "nats"
    made, seed, taken = await asyncio.to_thread(Enrolment(file, folder).enrol, "far", ["default"], DAY)
    assert not taken
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert seed not in await asyncio.to_thread(file.read_text)
    async with AsyncExitStack() as stack:
        broker = await stack.enter_async_context(Broker(folder, workers=file))
        site = Site(stack, tmp_path, broker)
        await site.join()
        later = await site.key("later")
        assert stat.S_IMODE((folder / "nats.conf").stat().st_mode) == 0o600
        worker, first = await site.join("far", seed), broker.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        await until(lambda: broker.restarts == 1 and broker.pid != first)
        await until(lambda: worker.connected)
        await site.join("later", later)
        with pytest.raises(BadKey, match="far has a key already"):
            await site.key("far")
    assert [one.name for one in await asyncio.to_thread(site.enrolment.known)] == [made.name, "later"]


@pytest.mark.parametrize(
    "seed", ["", "SU", SEED[:-1], SEED + "A", SEED.lower(), SEED[:20] + ("A" if SEED[20] != "A" else "B") + SEED[21:],
             "SA" + SEED[2:], "SUÄ" + SEED[3:]],
    ids=["none", "short", "shorter", "longer", "small", "other", "account", "umlaut"],
)  # fmt: skip
def test_a_garbled_key_is_told_from_a_whole_one(seed: str) -> None:
    with pytest.raises(BadKey, match="begins with SU"):
        keys.public(seed)
    if seed:
        with pytest.raises(Unreachable, match="no worker's key, or not all of it"):
            Right("far", key=seed).options("nats://127.0.0.1:4222")


@pytest.mark.parametrize("name", ["", "a b", ".hidden", "x" * 65, "*", "a>b", "ä", "a\n"])
def test_names_are_the_contracts(name: str) -> None:
    with pytest.raises(BadKey, match="have names of up to 64"):
        keys.make(name, ["default"], DAY)
    with pytest.raises(BadKey, match="1 to 16 pools"):
        keys.make("far", [name] if name else [], DAY)


@pytest.mark.asyncio
async def test_a_file_of_keys_that_cannot_be_read_stops_the_start(tmp_path: Path) -> None:
    file = tmp_path / "worker-keys.json"
    file.write_text('[{"name": "far"}]')
    with pytest.raises(BrokerError, match="cannot be read"):
        await Broker(tmp_path / "nats", workers=file).__aenter__()


@pytest.mark.asyncio
async def test_a_broker_of_ones_own_may_have_a_token_or_a_user_for_all(tmp_path: Path) -> None:
    program = str(await asyncio.to_thread(server_path))
    for users, token in (('token: "plain"', "plain"), ('user: "ann", password: "secret"', "ann:secret")):
        port, folder = free_port(), tmp_path / token.replace(":", "-")
        folder.mkdir()
        config = folder / "own.conf"
        config.write_text(
            f'host: "127.0.0.1"\nport: {port}\nauthorization {{ {users} }}\njetstream {{ store_dir: "{folder}" }}\n'
        )
        server = await asyncio.create_subprocess_exec(
            program, "-c", str(config), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            bus = await Bus.connect(f"nats://127.0.0.1:{port}", token)
            await bus.declare()
            await bus.close()
            with pytest.raises(Unreachable, match=r"(?i)authorization"):
                await Bus.connect(f"nats://127.0.0.1:{port}", "wrong", patience=0.5)
        finally:
            server.terminate()
            await server.wait()


@pytest.mark.asyncio
async def test_behind_a_certificate_the_broker_speaks_nothing_but_tls(tmp_path: Path, needs: Any) -> None:
    certificate, secret = tmp_path / "broker.pem", tmp_path / "broker.key"
    making = await asyncio.create_subprocess_exec(
        needs("openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
        "-keyout", str(secret), "-out", str(certificate), "-days", "3", "-subj", "/CN=broker.example",
        "-addext", "subjectAltName=DNS:broker.example", stderr=subprocess.DEVNULL,
    )  # fmt: skip
    assert await making.wait() == 0
    at = Listening(certificate=certificate, certificate_key=secret)
    async with AsyncExitStack() as stack:
        broker = await stack.enter_async_context(
            Broker(tmp_path / "nats", at=at, workers=tmp_path / "worker-keys.json")
        )
        site = Site(stack, tmp_path, broker)
        assert broker.url.startswith("tls://127.0.0.1:")
        for name, token, key in (("darkroom", broker.token, ""), ("far", "", await site.key("far"))):
            bus = await Bus.connect(broker.url, token, name=name, key=key, authority=certificate)
            await bus.declare(["default"])
            await bus.close()
        for url, authority in ((broker.url, None), (broker.url.replace("tls:", "nats:"), None)):
            with pytest.raises(Unreachable, match=r"(?i)certificate"):
                await Bus.connect(url, broker.token, authority=authority, patience=1.0)
        with pytest.raises(Unreachable, match="cannot be read"):
            await Bus.connect(broker.url, broker.token, authority=secret)
