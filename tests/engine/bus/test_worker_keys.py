"""Worker keys with the real server: a key gives access to its worker's part of the broker only, until revoked."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import stat
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from msgspec.structs import replace
from nats.js.errors import APIError

from bot.app import leader_election as leading_module
from bot.app.leader_election import keep_lead
from engine.bus import (
    BlobMissing,
    BrokerUnreachable,
    Bus,
    BusLimits,
    ClaimHolder,
    ConnectionEnded,
    subjects,
    worker_keys,
)
from engine.bus.claims import open_leader_lease
from engine.bus.connection import Credentials
from engine.bus.embedded_broker import Broker, BrokerError, ListenAddress, WorkerKeyAdmin, find_free_port, find_server
from engine.bus.worker_keys import BadKey
from engine.contract import (
    AmendJob,
    AmendmentRequest,
    BillingKey,
    Concept,
    ControlMessage,
    DecodeReply,
    DecodeRequest,
    DescribeReply,
    DescribeRequest,
    Frame,
    Job,
    JobModelLoading,
    JobStarted,
    ModelProgress,
    Presence,
    Recipe,
    SetNegative,
    Snapshot,
    encode,
)
from shared.clock import wait_until
from tools.attack.foreign_subjects import FORBIDDEN, FORBIDDEN_SUBSCRIPTIONS, JOB, OTHER

LEASE = 1.0
DAY = "2026-11-26"
SEED = worker_keys.create_key("far", ["default"], DAY)[1]


def make_job(job: str = JOB, pool: str = "default") -> Job:
    task = Recipe(
        concepts=(Concept("a cat"),),
        model="embedded",
        sampler="ddim",
        steps=4,
        seed=1,
        guidance=4.0,
        width=64,
        height=64,
        dtype="float32",
    )
    return Job(id=job, task=task, billing_key=BillingKey("standard", "guild", "ann"), cost=1.0, deadline=2e9, pool=pool)


def a_presence(name: str) -> Presence:
    return Presence(worker=name, pools=("default",), models=(), device="none", rows=1, free=1, software_build="test")


class BrokerSite:
    """A broker, its keys, and any number of connections."""

    def __init__(self, stack: AsyncExitStack, folder: Path, broker: Broker) -> None:
        self._stack = stack
        self.folder = folder
        self.broker = broker
        self.file = folder / "worker-keys.json"
        self.worker_keys = WorkerKeyAdmin(self.file, folder / "nats")

    async def create_key(self, name: str, *pools: str) -> str:
        _, seed, is_active = await asyncio.to_thread(self.worker_keys.add_key, name, pools or ("default",), DAY)
        assert is_active
        return seed

    async def revoke_key(self, name: str) -> None:
        assert await asyncio.to_thread(self.worker_keys.revoke_key, name)

    async def connect(self, name: str = "darkroom", key: str = "", *, pools: tuple[str, ...] = ("default",)) -> Bus:
        """Connects as the bot, or with a key as its worker."""
        token = "" if key else self.broker.token
        bus = await Bus.connect(self.broker.url, token, name=name, key=key, limits=BusLimits(lease=LEASE), timeout=3.0)
        self._stack.push_async_callback(bus.close)
        await bus.declare(pools)
        return bus


@pytest_asyncio.fixture
async def site(tmp_path: Path) -> AsyncIterator[BrokerSite]:
    async with AsyncExitStack() as stack:
        broker = await stack.enter_async_context(Broker(tmp_path / "nats", workers=tmp_path / "worker-keys.json"))
        yield BrokerSite(stack, tmp_path, broker)


async def wait_for_first(source: AsyncIterator[Any], publish: Callable[[], Any]) -> Any:
    """Repeats `publish` until the iterator yields its first value; returns it."""
    first_value = asyncio.ensure_future(anext(source))
    async with asyncio.timeout(10):
        while not first_value.done():
            await publish()
            await asyncio.wait((first_value,), timeout=0.1)
    await source.aclose()  # pyright: ignore[reportAttributeAccessIssue]
    return first_value.result()


@pytest.mark.asyncio
async def test_a_key_allows_everything_that_a_worker_does(site: BrokerSite) -> None:
    bot = await site.connect()
    await bot.watch_workers()
    worker = await site.connect(
        "far.away", await site.create_key("far.away", "default", "big"), pools=("default", "big")
    )
    pull_task = asyncio.create_task(worker.pull_job(["default", "big"], timeout=8))
    assert await bot.dispatch(make_job())
    delivered = await pull_task
    assert delivered is not None
    claim = await worker.claim_job(JOB, "far.away")
    assert claim is not None
    assert await worker.renew_claim(claim)
    assert (await worker.get_holder(JOB)) is not None
    await delivered.in_progress()
    await worker.announce(a_presence("far.away"))
    await wait_until(lambda: "far.away" in bot.workers)
    await worker.publish_result("far.away", JobStarted(job=JOB, epoch=claim.epoch, worker="far.away"))
    async for result in bot.consume_results():
        assert result.value == JobStarted(job=JOB, epoch=claim.epoch, worker="far.away")
        await result.ack()
        break
    await _check_storage(worker, bot, claim.epoch)
    await _check_requests(worker, bot)
    await delivered.ack()
    await worker.release_claim(claim)
    await worker.remove_presence("far.away")
    await wait_until(lambda: not bot.workers)
    await worker.stop_pulling()
    assert worker.client.last_error is None


async def _check_storage(worker: Bus, bot: Bus, epoch: int) -> None:
    """Writes, reads, drops and rewrites snapshots of all sizes, and blobs."""
    for content in (b"small", os.urandom(2 * 1024 * 1024 + 7)):
        assert await bot.get_blob(await worker.put_blob(content), len(content)) == content
    for k, size in ((1, 16), (2, 7 * 1024 * 1024), (3, 16)):
        one = Snapshot(job=JOB, image=1, epoch=epoch, next_step=k, shape=(1, 4), x=b"x" * size, history=b"")
        await worker.put_snapshot(one)
        assert await bot.get_snapshots(JOB) == [one]
    await worker.drop_snapshots(JOB)
    assert await bot.get_snapshots(JOB) == []
    await worker.put_snapshot(one)
    assert await worker.get_snapshots(JOB) == [one]
    assert (await bot.js.stream_info("OBJ_blobs")).state.bytes < 7 * 1024 * 1024
    await bot.drop_snapshots(JOB)


async def _check_requests(worker: Bus, bot: Bus, name: str = "far.away") -> None:
    async def embed(texts: Any) -> Any:
        return [[1.0]] * len(texts)

    async def describe(request: DescribeRequest) -> DescribeReply:
        return DescribeReply(errors=((0.5,) * request.draws,) * len(request.texts))

    async def decode(request: DecodeRequest) -> DecodeReply:
        return DecodeReply(thumbnails=tuple(reversed(request.latents)))

    await worker.serve_embed(embed)
    await worker.serve_decode(["default"], ["embedded", "a.dotted"], decode)
    await worker.serve_describe(["embedded", "a.dotted"], describe)
    await worker.client.flush()
    assert await bot.embed(["a word"]) == ((1.0,),)
    for model in ("embedded", "a.dotted"):
        request = DescribeRequest(model=model, picture=b"\x89PNG", texts=("a", "b"), draws=2)
        assert await bot.describe(request) == ((0.5, 0.5), (0.5, 0.5))
        latents = DecodeRequest(model=model, revision="r", width=64, height=64, latents=(b"ab", b"cd"))
        assert await bot.decode("default", latents) == (b"cd", b"ab")
    assert await wait_for_first(worker.watch_preview_requests(), lambda: bot.request_previews(JOB)) == JOB
    assert (
        await wait_for_first(
            worker.watch_control_messages(), lambda: bot.send_control(ControlMessage(job=JOB, action="pause"))
        )
    ).action == "pause"
    amend = AmendJob(job=JOB, epoch=1, requests=(AmendmentRequest(1, SetNegative("fog")),))
    watched = worker.watch_amendments(["default"])
    assert await wait_for_first(watched, lambda: bot.send_amendments("default", amend)) == amend
    assert await wait_for_first(worker.watch_cancelled(), lambda: bot.cancel(OTHER)) == OTHER
    assert await worker.is_cancelled(OTHER)
    frame = Frame(job=JOB, image=0, epoch=1, step=1, total_steps=4, picture=b"\xff\xd8\xff", seconds_left=1.0)
    assert await wait_for_first(bot.watch_frames(), lambda: worker.publish_frame(frame)) == frame
    loading_message = JobModelLoading(job=JOB, epoch=1, model="embedded", loaded_share=0.5)
    assert (
        await wait_for_first(bot.watch_loadings(), lambda: worker.publish_loading(loading_message)) == loading_message
    )
    await worker.publish_progress(name, ("default",), ModelProgress())
    await wait_until(lambda: bot.model_progress.get_progress(name) == ModelProgress())


@pytest.mark.asyncio
async def test_a_key_allows_nothing_else(site: BrokerSite) -> None:
    bot = await site.connect()
    await bot.dispatch(make_job(OTHER, pool="big"))
    worker = await site.connect("far", await site.create_key("far"))
    client = worker.client
    refused_subjects = set[str]()
    errors: list[str] = []

    async def note(error: Exception) -> None:
        errors.append(str(error))

    client._error_cb = note
    for subject in FORBIDDEN:
        await client.publish(subject, b"{}", f"_INBOX.far.{len(refused_subjects)}")
    for subject in FORBIDDEN_SUBSCRIPTIONS:
        await client.subscribe(subject)
    await client.flush()
    await wait_until(lambda: len(errors) >= len(FORBIDDEN) + len(FORBIDDEN_SUBSCRIPTIONS))
    violation_matches = [
        re.search(r'permissions violation for (publish|subscription) to "([^"]+)"', one) for one in errors
    ]
    refused_subjects = {(one[1], one[2]) for one in violation_matches if one}
    expected = {("publish", one.lower()) for one in FORBIDDEN} | {
        ("subscription", one.lower()) for one in FORBIDDEN_SUBSCRIPTIONS
    }
    assert refused_subjects == expected
    assert worker.is_connected
    for stream in ("results", "KV_cancelled", "KV_workers", "KV_leaders", "dead"):
        assert (await bot.js.stream_info(stream)).state.messages == 0, stream
    assert (await bot.js.stream_info("work")).state.messages == 1


MISSING_CLAIM = f"$JS.API.DIRECT.GET.KV_claims.$KV.claims.{OTHER}"
REQUESTS = {  # requests that a worker may send, each with another kind of answer
    MISSING_CLAIM: b"",
    f"$JS.API.DIRECT.GET.KV_snapshots.$KV.snapshots.{JOB}.0": b"",
    "$JS.API.CONSUMER.MSG.NEXT.work.pool-default": b'{"batch":1,"no_wait":true}',
    "$JS.API.CONSUMER.INFO.work.pool-default": b"",
    f"$KV.snapshots.{JOB}.1": b"{}",
    f"results.far.{JOB}": b"{}",
}
SPY_CONSUMER = (
    b'{"stream_name":"dead","config":{"deliver_subject":"_INBOX.far.spy","ack_policy":"none","deliver_policy":"all"}}'
)
FOREIGN_SUBJECTS = [
    *(f"$JS.API.STREAM.PURGE.{stream}" for stream in ("KV_claims", "dead", "KV_leaders", "results")),
    *(f"$JS.API.STREAM.DELETE.{stream}" for stream in ("KV_claims", "dead", "KV_leaders", "results")),
    "$JS.API.CONSUMER.CREATE.dead",
    "$JS.API.CONSUMER.DELETE.work.pool-default",
    "$JS.API.STREAM.MSG.GET.dead",
    f"results.other.{JOB}",
    "$KV.leaders.bot",
    f"$KV.cancelled.{JOB}",
    f"work.big.{JOB}.1",
    "$KV.workers.other.default",
    "_INBOX.other.1",
    f"want.{JOB}",
    f"steer.{JOB}",
    "embed",
    "describe.embedded",
    "decode.default.embedded",
    "vectors.one",
    f"dead.work.big.{JOB}.1",
]


@pytest.mark.asyncio
async def test_answers_never_leave_the_account_of_their_request(site: BrokerSite) -> None:
    """The server checks no permission for a reply subject, so an answer could go where a worker may not publish."""
    bot = await site.connect()
    other = await site.connect("other", await site.create_key("other"))
    worker = await site.connect("far", await site.create_key("far"))
    await bot._prepare_pool("default")
    assert await other.claim_job(JOB, "other")
    await bot.js.publish(f"dead.work.big.{OTHER}.1", b"somebody's job")
    await bot.js.publish("$KV.leaders.bot", encode(ClaimHolder(worker="bot-a")))
    streams = [f"KV_{name}" for name in ("claims", "leaders", "cancelled", "workers")] + ["dead", "work", "results"]
    before = {name: await last_sequence(bot, name) for name in streams}
    received_subjects: list[str] = []

    async def note(msg: Any) -> None:
        received_subjects.append(msg.subject)

    for one in (f"results.other.{JOB}", "want.*", "steer.*", "embed", "describe.*", "vectors.*", "$JS.API.>"):
        await bot.client.subscribe(one, cb=note)
    await other.client.subscribe("_INBOX.other.1", cb=note)
    await worker.client.subscribe("_INBOX.far.spy", cb=note)
    for bus in (bot, other):
        await bus.client.flush()
    await worker.js.publish(f"$KV.snapshots.{JOB}.0", SPY_CONSUMER)
    for request, content in REQUESTS.items():
        for foreign_subject in FOREIGN_SUBJECTS:
            await worker.client.publish(request, content, reply=foreign_subject)
    assert await worker.get_holder(OTHER) is None  # it asks last, so all other answers have come
    await bot.client.flush()
    await asyncio.sleep(0.3)
    assert worker.client.last_error is None
    assert set(received_subjects) <= set(REQUESTS)
    after = {name: await last_sequence(bot, name) for name in streams}
    assert after == before | {"results": len(FOREIGN_SUBJECTS)}
    assert (await bot.js.stream_info("dead")).state.messages == 1
    assert (await bot.get_holder(JOB) or ClaimHolder(worker="none")).worker == "other"
    assert (await bot.js.consumer_info("work", "pool-default")).name
    assert await bot.js.consumers_info("dead") == []


async def join_as_attacker(site: BrokerSite, attacker_kind: str) -> Bus:
    """Joins with a worker's key, or with the local token, to send answers to any subject."""
    return await site.connect("far", await site.create_key("far") if attacker_kind == "key" else "")


@pytest.mark.asyncio
@pytest.mark.parametrize("attacker_kind", ["key", "token"])
async def test_a_redirected_answer_is_never_taken_for_a_message(site: BrokerSite, attacker_kind: str) -> None:
    """A worker that may read snapshots can name any reply subject, and it wrote the snapshot's content itself."""
    bot = await site.connect()
    await bot.watch_workers()
    worker = await join_as_attacker(site, attacker_kind)
    forged_messages = {
        f"results.other.{JOB}": encode(JobStarted(job=JOB, epoch=1, worker="other")),
        f"work.big.{JOB}.1": encode(make_job(pool="big")),
        "$KV.workers.other.default": encode(a_presence("other")),
        "$KV.workers.far.big": encode(replace(a_presence("far"), pools=("big",))),
    }
    for number, (subject, content) in enumerate(forged_messages.items()):
        key = f"$KV.snapshots.{JOB}.{number}"
        await worker.js.publish(key, content)
        await worker.client.publish(f"$JS.API.DIRECT.GET.KV_snapshots.{key}", b"", reply=subject)
    assert await worker.get_holder(OTHER) is None  # it asks last, so all other answers have come
    await bot.publish_result("true", JobStarted(job=OTHER, epoch=1, worker="true"))
    async for result in bot.consume_results():
        assert result.value == JobStarted(job=OTHER, epoch=1, worker="true")
        break
    assert await bot.pull_job(["big"], timeout=0.3) is None
    late_bus = await site.connect()
    await late_bus.watch_workers()
    assert (set(bot.workers), set(late_bus.workers)) == (set(), set())
    assert bot.dead_letters.count == ({} if attacker_kind == "key" else {"results": 1, "work": 1})


@pytest.mark.asyncio
async def test_no_worker_announces_another(site: BrokerSite) -> None:
    bot = await site.connect()
    await bot.watch_workers()
    worker = await site.connect("far", await site.create_key("far"))
    await worker.js.publish("$KV.workers.far.default", encode(a_presence("other")))
    late_bus = await site.connect()
    await late_bus.watch_workers()
    assert (set(bot.workers), set(late_bus.workers)) == (set(), set())


@pytest.mark.asyncio
async def test_a_worker_counts_only_in_the_pools_of_its_key(site: BrokerSite) -> None:
    bot = await site.connect()
    await bot.watch_workers()
    worker = await site.connect("far", await site.create_key("far", "guest", "guest.two"), pools=())
    presence = replace(a_presence("far"), pools=("default", "guest", "guest.two"), rows=1000, free=1000)
    await worker.announce(replace(presence, pools=presence.pools[1:]))
    await wait_until(lambda: "far" in bot.workers)
    for pool in ("guest", "guest=two"):
        await worker.js.publish(f"$KV.workers.far.{pool}", encode(presence))
    await worker.client.publish("$KV.workers.far.default", encode(presence))
    await worker.client.publish("$KV.workers.far", encode(presence))
    await worker.js.publish("$KV.workers.far.guest", encode(replace(presence, free=7)))
    await wait_until(lambda: bot.workers["far"].free == 7)
    late_bus = await site.connect()
    await late_bus.watch_workers()
    for bus in (bot, late_bus):
        assert [one.pools for one in bus.workers.values()] == [("guest", "guest.two")]
    assert "permissions violation" in str(worker.client.last_error)


@pytest.mark.asyncio
@pytest.mark.parametrize("attacker_kind", ["key", "token"])
async def test_a_redirected_empty_answer_removes_no_other_worker(site: BrokerSite, attacker_kind: str) -> None:
    """The broker answers a request for a missing message without content."""
    bot = await site.connect()
    other = await site.connect()
    await bot.watch_workers()
    worker = await join_as_attacker(site, attacker_kind)
    await other.announce(a_presence("other"))
    await wait_until(lambda: "other" in bot.workers)
    subscription = await bot.client.subscribe("$KV.workers.other.default")
    await bot.client.flush()
    missing_subject = f"$JS.API.DIRECT.GET.KV_snapshots.$KV.snapshots.{JOB}.0"
    await worker.client.publish(missing_subject, b"", reply="$KV.workers.other.default")
    if attacker_kind == "key":
        assert await worker.get_holder(OTHER) is None
        with pytest.raises(TimeoutError):
            await subscription.next_msg(0.3)
    else:
        assert (await subscription.next_msg(5)).data == b""
    await bot.client.flush()
    assert set(bot.workers) == {"other"}


@pytest.mark.asyncio
@pytest.mark.parametrize("scope", ["all", "sub"])
async def test_a_worker_cannot_purge_a_stream_by_a_header(site: BrokerSite, scope: str) -> None:
    bot = await site.connect()
    worker = await site.connect("far", await site.create_key("far"))
    await bot.claim_job(OTHER, "other")
    await bot.put_snapshot(Snapshot(job=OTHER, image=0, epoch=1, next_step=1, shape=(1,), x=b"x", history=b""))
    sha = await bot.put_blob(b"theirs")
    await bot.js.publish(f"dead.work.default.{OTHER}.1", b"theirs")
    await bot.publish_result("other", JobStarted(job=OTHER, epoch=1, worker="other"))
    await bot.announce(a_presence("other"))
    refused_subjects = set[str]()
    for subject in worker_keys.list_publish_subjects("far", ["default"]):
        if not subject.startswith(("$JS.", "frames.", "loading.", "progress.")):
            concrete_subject = subject.replace("*", "one").replace(">", "one")
            with pytest.raises(APIError, match="rollup not permitted"):
                await worker.js.publish(concrete_subject, b"", headers={"Nats-Rollup": scope})
            refused_subjects.add(subject.rsplit(".", 2)[0])
    assert len(refused_subjects) >= 6
    for stream in ("KV_claims", "KV_snapshots", "KV_workers", "results", "dead"):
        assert (await bot.js.stream_info(stream)).state.messages == 1, stream
    assert await bot.get_blob(sha, 10) == b"theirs"


async def write(bus: Bus, line: bytes) -> None:
    """Writes a raw line that no client library would send."""
    assert bus.client._transport is not None
    bus.client._transport.write(line)
    await bus.client.flush()


async def write_with(bus: Bus, subject: str, block: bytes, content: bytes) -> None:
    """Publishes a message with a header block that no client library would write."""
    sizes = b"%d %d" % (len(block), len(block) + len(content))
    await write(bus, b"HPUB %s %s\r\n%s%s\r\n" % (subject.encode(), sizes, block, content))


async def wait_until_stored(bot: Bus, stream: str, publish: Awaitable[None]) -> None:
    """Awaits `publish` and returns once the stream has stored it, which is later than the broker's confirmation."""
    before = await last_sequence(bot, stream)
    await publish
    async with asyncio.timeout(5):
        while await last_sequence(bot, stream) == before:
            await asyncio.sleep(0.01)


async def last_sequence(bot: Bus, stream: str) -> int:
    """The sequence number of the stream's newest message ever."""
    return (await bot.js.stream_info(stream)).state.last_seq


ODD_NAMES = (
    b"\xff\xfe",
    b"\xed\xa0\x80",
    b"a\x0bb",
    b"a\x0c1",
    b"a\x00b",
    b"*",
    b">",
    b"x" * 4000,
    b"\xff" * 4000,
    "a\u0085\u2028b".encode(),
)
ODD_BLOCKS = (
    b"NATS/1.0 \xff\xff\xff\r\n\r\n",
    b"NATS/1.0 \xff\xff\xff",
    b"NATS/1.0 404 \xff\r\n\r\n",
    b"NATS/1.0",
    b"NATS/1.0\r\n a: b\r\n\r\n",
    b"NATS/1.0 ",
    b"N",
    b"\xff" * 8 + b" \xff\xff\xff",
    b"NATS/1.0\r\n\x00:\xff",
)


@pytest.mark.asyncio
async def test_no_message_of_a_worker_stops_the_bots_subscriptions(site: BrokerSite) -> None:
    """The server accepts all of these; most of them ended the client library's read loop."""
    bot = await site.connect()
    worker = await site.connect("far", await site.create_key("far"))
    results = bot.consume_results()
    frames = bot.watch_frames()
    next_result = asyncio.ensure_future(anext(results))
    next_frame = asyncio.ensure_future(anext(frames))
    await asyncio.sleep(0.2)
    for prefix in (b"results.far.", b"frames."):
        for name in ODD_NAMES:
            await write(worker, b"PUB %s%s 3\r\nabc\r\n" % (prefix, name))
        await write(worker, b"PUB %sa a\xff\x0bb 3\r\nabc\r\n" % prefix)
    for block in ODD_BLOCKS:
        await write_with(worker, f"results.far.{JOB}", block, b"abc")
        await write_with(worker, f"frames.{JOB}", block, b"abc")
    assert worker.client.last_error is None
    valid_result = JobStarted(job=JOB, epoch=1, worker="far")
    await worker.publish_result("far", valid_result)
    frame = Frame(job=JOB, image=0, epoch=1, step=1, total_steps=4, picture=b"\xff\xd8\xff", seconds_left=1.0)
    await worker.publish_frame(frame)
    result = await asyncio.wait_for(next_result, 10)
    assert (result.value, await asyncio.wait_for(next_frame, 10)) == (valid_result, frame)
    await result.ack()
    odd = len(ODD_NAMES) + 1 + len(ODD_BLOCKS)
    assert bot.dead_letters.count == {"results": odd, "frames": odd}
    assert (await bot.js.stream_info("dead")).state.messages == odd
    assert (await bot.js.stream_info("results")).state.messages == 0  # so none is delivered again
    assert (bot.client.stats["reconnects"], bot.client.last_error) == (0, None)
    await results.aclose()  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.sampled
@pytest.mark.asyncio
@pytest.mark.parametrize("attacker_kind", ["key", "token"])
@pytest.mark.parametrize(
    "block",
    [
        b"NATS/1.0\r\na: bXX",
        b"NATS/1.0",
        b"NATS/1.0\r\na: b\r\n\r\nc: d\r\n\r\n",
        b"NATS/1.0 404\r\na: bXX",
        b"\xff" * 20,
    ],
)
async def test_no_headers_disguise_an_answer_as_a_message(site: BrokerSite, block: bytes, attacker_kind: str) -> None:
    """The broker appends its headers to the message's own and cuts two bytes that it takes for their end."""
    bot = await site.connect()
    await bot.watch_workers()
    worker = await join_as_attacker(site, attacker_kind)
    forged_messages = {
        f"results.other.{JOB}": encode(JobStarted(job=JOB, epoch=1, worker="other")),
        "$KV.workers.other.default": encode(a_presence("other")),
    }
    for number, (subject, content) in enumerate(forged_messages.items()):
        key = f"$KV.snapshots.{JOB}.{number}"
        await write_with(worker, key, block, content)
        await worker.client.publish(f"$JS.API.DIRECT.GET.KV_snapshots.{key}", b"", reply=subject)
    assert await worker.get_holder(OTHER) is None
    async with asyncio.timeout(5):
        while attacker_kind == "token" and not all(
            [await last_sequence(bot, stream) for stream in ("results", "KV_workers")]
        ):
            await asyncio.sleep(0.02)
    late_bus = await site.connect()
    await late_bus.watch_workers()
    await bot.publish_result("true", JobStarted(job=OTHER, epoch=1, worker="true"))
    async for result in bot.consume_results():
        assert result.value == JobStarted(job=OTHER, epoch=1, worker="true")
        break
    assert bot.dead_letters.count == ({} if attacker_kind == "key" else {"results": 1})
    assert await last_sequence(bot, "KV_workers") == (0 if attacker_kind == "key" else 1)
    assert (bot.workers, late_bus.workers) == ({}, {})


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "block", [b"NATS/1.0", b"NATS/1.0\r\nStatus: abc\r\n\r\n", b"NATS/1.0\r\nStatus: 500\r\n\r\n", b"\xff" * 20]
)
async def test_odd_headers_of_a_claim_or_blob_count_as_missing(site: BrokerSite, block: bytes) -> None:
    bot = await site.connect()
    worker = await site.connect("far", await site.create_key("far"))
    other = await site.connect("other", await site.create_key("other"))
    claim = await other.claim_job(JOB, "other")
    assert claim is not None
    await wait_until_stored(bot, "KV_claims", write_with(worker, f"$KV.claims.{JOB}", block, b""))
    assert await bot.get_holder(JOB) is None
    assert not await other.renew_claim(claim)
    second_claim = await other.claim_job(JOB, "other")
    assert second_claim is not None
    assert second_claim.epoch > claim.epoch
    await wait_until_stored(bot, subjects.BLOBS_STREAM, write_with(worker, subjects.blob_entry("a" * 64), block, b""))
    with pytest.raises(BlobMissing):
        await bot.get_blob("a" * 64, 100)


UNTERMINATED = b"NATS/1.0\r\na: b\r\n\r\nc: dXX"  # an empty line and no terminator


async def overwrite_lease(worker: Bus, overwrite_kind: str) -> None:
    """Makes the broker send an answer to the leader's key; this needs the token and the bots' account."""
    request = MISSING_CLAIM
    if overwrite_kind != "empty":
        tombstone = b"NATS/1.0\r\nKV-Operation: DEL\r\n\r\n"
        block = {"tombstone": tombstone, "holder": b"NATS/1.0\r\n\r\n", "hidden": UNTERMINATED}[overwrite_kind]
        content = b"" if overwrite_kind == "tombstone" else encode(ClaimHolder(worker="bot-false"))
        await write_with(worker, f"$KV.snapshots.{JOB}.0", block, content)
        request = f"$JS.API.DIRECT.GET.KV_snapshots.$KV.snapshots.{JOB}.0"
    await worker.client.publish(request, b"", reply="$KV.leaders.bot")
    await worker.client.flush()


async def overwrite_and_wait(bot: Bus, worker: Bus, overwrite_kind: str) -> None:
    await wait_until_stored(bot, "KV_leaders", overwrite_lease(worker, overwrite_kind))


OVERWRITES = ["empty", "holder", "hidden", "tombstone"]


@pytest.mark.asyncio
@pytest.mark.parametrize("overwrite_kind", OVERWRITES)
async def test_an_overwritten_leader_lease_neither_ends_nor_moves_it(site: BrokerSite, overwrite_kind: str) -> None:
    bot = await site.connect()
    second = await site.connect("second")
    worker = await site.connect("far")
    own_lease = open_leader_lease(bot.js, 1.0)
    other_lease = open_leader_lease(second.js, 1.0)
    claim = await own_lease.acquire("bot-a")
    assert claim is not None
    assert await other_lease.acquire("bot-b") is None
    await overwrite_and_wait(bot, worker, overwrite_kind)
    assert await other_lease.acquire("bot-b") is None
    assert await open_leader_lease(second.js, 1.0).acquire("bot-c") is None  # a newly started bot
    assert await other_lease.get_holder() is None
    assert not await own_lease.renew(claim)
    reacquired = await own_lease.acquire("bot-a")
    assert reacquired is not None
    assert await own_lease.renew(reacquired)
    assert await other_lease.acquire("bot-b") is None
    assert (await other_lease.get_holder() or ClaimHolder(worker="none")).worker == "bot-a"
    await own_lease.release(reacquired)
    assert await other_lease.acquire("bot-b") is not None  # at once


@pytest.mark.asyncio
async def test_a_garbage_lease_without_a_leader_is_replaced(site: BrokerSite) -> None:
    bot = await site.connect()
    worker = await site.connect("far")
    own_lease = open_leader_lease(bot.js, 0.5)
    lease = None
    async with asyncio.timeout(10):
        while lease is None:
            await overwrite_and_wait(bot, worker, "empty")
            lease = await own_lease.acquire("bot-a")
            await asyncio.sleep(0.1)
    assert (await own_lease.get_holder() or ClaimHolder(worker="none")).worker == "bot-a"


@pytest.mark.sampled
@pytest.mark.asyncio
@pytest.mark.parametrize("overwrite_kind", OVERWRITES)
async def test_a_leader_keeps_leading_while_its_lease_is_overwritten(
    site: BrokerSite, overwrite_kind: str, monkeypatch: Any
) -> None:
    monkeypatch.setattr(leading_module, "RENEW_SECONDS", 0.2)
    bot = await site.connect()
    second = await site.connect("second")
    worker = await site.connect("far")
    loss_reasons = list[str]()
    other_lease = open_leader_lease(second.js, 4.0)
    async with keep_lead(bot, print, on_lost=loss_reasons.append):
        name = (await other_lease.get_holder() or ClaimHolder(worker="none")).worker
        for _ in range(8):
            await overwrite_and_wait(bot, worker, overwrite_kind)
            assert await other_lease.acquire("bot-b") is None
            await asyncio.sleep(0.15)
        await asyncio.sleep(0.5)
        assert (await other_lease.get_holder() or ClaimHolder(worker="none")).worker == name
        assert name.startswith("bot-")
    assert loss_reasons == []


@pytest.mark.asyncio
async def test_a_revoked_worker_is_disconnected_and_another_takes_its_job(site: BrokerSite) -> None:
    bot = await site.connect()
    await bot.dispatch(make_job())
    remote_bus = await site.connect("far", await site.create_key("far"))
    local_bus = await site.connect("near", await site.create_key("near"))
    process = site.broker.pid
    socket = local_bus.client.stats["reconnects"]
    delivery = await remote_bus.pull_job(["default"], timeout=5)
    assert delivery is not None
    assert await remote_bus.claim_job(JOB, "far")
    close_tasks = [asyncio.create_task(bus.wait_closed()) for bus in (remote_bus, local_bus, bot)]
    await site.revoke_key("far")
    with pytest.raises(ConnectionEnded, match=r"(?i)authorization violation"):
        await asyncio.wait_for(close_tasks[0], 10)
    redelivery = await local_bus.pull_job(["default"], timeout=LEASE * 5)
    assert redelivery is not None
    assert redelivery.value.id == JOB
    async with asyncio.timeout(LEASE * 5):
        while await local_bus.claim_job(JOB, "near") is None:
            await asyncio.sleep(0.05)
    assert not close_tasks[1].done()
    assert not close_tasks[2].done()
    assert (local_bus.client.stats["reconnects"], bot.client.stats["reconnects"]) == (socket, 0)
    assert (site.broker.pid, site.broker.restarts) == (process, 0)
    for task in close_tasks[1:]:
        task.cancel()
    await asyncio.gather(*close_tasks[1:], return_exceptions=True)


@pytest.mark.asyncio
async def test_a_key_is_valid_for_one_name_and_its_pools_until_revoked(site: BrokerSite) -> None:
    await site.connect()
    key = await site.create_key("far")
    with pytest.raises(BrokerUnreachable, match=r"does not let this key serve big.*pool-big"):
        await site.connect("far", key, pools=("default", "big"))
    with pytest.raises(BrokerUnreachable, match="does not let this key serve default"):
        await site.connect("other", key)
    await site.revoke_key("far")
    with pytest.raises(BrokerUnreachable, match=r"(?i)authorization"):
        await site.connect("far", key)
    with pytest.raises(BadKey, match="No worker named far has a key"):
        await site.revoke_key("far")


@pytest.mark.asyncio
async def test_keys_survive_restarts_and_a_crash_of_the_server(tmp_path: Path) -> None:
    file = tmp_path / "worker-keys.json"
    folder = tmp_path / "nats"
    record, seed, is_active = await asyncio.to_thread(WorkerKeyAdmin(file, folder).add_key, "far", ["default"], DAY)
    assert not is_active
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert seed not in await asyncio.to_thread(file.read_text)
    async with AsyncExitStack() as stack:
        broker = await stack.enter_async_context(Broker(folder, workers=file))
        site = BrokerSite(stack, tmp_path, broker)
        await site.connect()
        later_key = await site.create_key("later")
        assert stat.S_IMODE((folder / "nats.conf").stat().st_mode) == 0o600
        worker = await site.connect("far", seed)
        first = broker.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        await wait_until(lambda: broker.restarts == 1 and broker.pid != first)
        await wait_until(lambda: worker.is_connected)
        await site.connect("later", later_key)
        with pytest.raises(BadKey, match="far has a key already"):
            await site.create_key("far")
    assert [one.name for one in await asyncio.to_thread(site.worker_keys.list_keys)] == [record.name, "later"]


@pytest.mark.parametrize(
    "seed",
    [
        "",
        "SU",
        SEED[:-1],
        SEED + "A",
        SEED.lower(),
        SEED[:20] + ("A" if SEED[20] != "A" else "B") + SEED[21:],
        "SA" + SEED[2:],
        "SUÄ" + SEED[3:],
    ],
    ids=["none", "short", "shorter", "longer", "small", "other", "account", "umlaut"],
)
def test_a_garbled_key_is_refused(seed: str) -> None:
    with pytest.raises(BadKey, match="begins with SU"):
        worker_keys.derive_public_key(seed)
    if seed:
        with pytest.raises(BrokerUnreachable, match="no worker's key, or not all of it"):
            Credentials("far", key=seed).to_client_options("nats://127.0.0.1:4222")


@pytest.mark.parametrize("name", ["", "a b", ".hidden", "x" * 65, "*", "a>b", "ä", "a\n"])
def test_invalid_names_of_workers_and_pools_are_refused(name: str) -> None:
    with pytest.raises(BadKey, match="have names of up to 64"):
        worker_keys.create_key(name, ["default"], DAY)
    with pytest.raises(BadKey, match="1 to 16 pools"):
        worker_keys.create_key("far", [name] if name else [], DAY)


@pytest.mark.asyncio
async def test_an_unreadable_key_file_stops_the_start(tmp_path: Path) -> None:
    file = tmp_path / "worker-keys.json"
    file.write_text('[{"name": "far"}]')
    with pytest.raises(BrokerError, match="cannot be read"):
        await Broker(tmp_path / "nats", workers=file).__aenter__()


@pytest.mark.asyncio
async def test_an_external_broker_may_use_one_token_or_one_user(tmp_path: Path) -> None:
    program = str(await asyncio.to_thread(find_server))
    for users, token in (('token: "plain"', "plain"), ('user: "ann", password: "secret"', "ann:secret")):
        port = find_free_port()
        folder = tmp_path / token.replace(":", "-")
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
            with pytest.raises(BrokerUnreachable, match=r"(?i)authorization"):
                await Bus.connect(f"nats://127.0.0.1:{port}", "wrong", timeout=0.5)
        finally:
            server.terminate()
            await server.wait()


@pytest.mark.slow
@pytest.mark.asyncio
async def test_the_printed_accounts_suffice_for_an_external_broker(tmp_path: Path) -> None:
    record, seed = worker_keys.create_key("far", ["default", "big.one"], DAY)
    name, account = worker_keys.build_account(record.public, record.name, record.pools)
    port = find_free_port()
    config = tmp_path / "own.conf"
    text = (
        f'host: "127.0.0.1"\nport: {port}\njetstream {{ store_dir: "{tmp_path}" }}\nmax_payload: 8MB\naccounts {{\n'
        f'  darkroom {{\n    jetstream: enabled\n    users: [ {{ user: "darkroom", password: "secret" }} ]\n'
        f"    exports: {json.dumps(worker_keys.build_exports())}\n  }}\n"
    )
    config.write_text(text + "}\n")
    program = str(await asyncio.to_thread(find_server))
    server = await asyncio.create_subprocess_exec(program, "-c", str(config), stderr=subprocess.DEVNULL)
    try:
        bot = await Bus.connect(f"nats://127.0.0.1:{port}", "darkroom:secret")
        await bot.declare()
        await bot.watch_workers()
        config.write_text(f"{text}  {json.dumps(name)} {json.dumps(account)}\n}}\n")
        for _ in range(2):
            server.send_signal(signal.SIGHUP)
            await asyncio.sleep(0.5)
        worker = await Bus.connect(f"nats://127.0.0.1:{port}", name="far", key=seed)
        await worker.declare(record.pools)
        await bot.dispatch(make_job(pool="big.one"))
        delivered = await worker.pull_job(record.pools, timeout=5)
        assert delivered is not None
        await delivered.ack()
        assert await worker.claim_job(JOB, "far")
        await _check_storage(worker, bot, 1)
        await _check_requests(worker, bot, "far")
        assert (await bot.js.stream_info("work")).state.messages == 0
        for bus in (worker, bot):
            await bus.close()
    finally:
        server.terminate()
        await server.wait()


@pytest.mark.asyncio
async def test_with_a_certificate_the_broker_accepts_only_tls(tmp_path: Path, find_program: Any) -> None:
    certificate = tmp_path / "broker.pem"
    secret = tmp_path / "broker.key"
    openssl = await asyncio.create_subprocess_exec(
        find_program("openssl"),
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-keyout",
        str(secret),
        "-out",
        str(certificate),
        "-days",
        "3",
        "-subj",
        "/CN=broker.example",
        "-addext",
        "subjectAltName=DNS:broker.example",
        stderr=subprocess.DEVNULL,
    )
    assert await openssl.wait() == 0
    address = ListenAddress(certificate=certificate, certificate_key=secret)
    async with AsyncExitStack() as stack:
        broker = await stack.enter_async_context(
            Broker(tmp_path / "nats", listen_address=address, workers=tmp_path / "worker-keys.json")
        )
        site = BrokerSite(stack, tmp_path, broker)
        assert broker.url.startswith("tls://127.0.0.1:")
        for name, token, key in (("darkroom", broker.token, ""), ("far", "", await site.create_key("far"))):
            bus = await Bus.connect(broker.url, token, name=name, key=key, ca_file=certificate)
            await bus.declare(["default"])
            await bus.close()
        for url, ca_file in ((broker.url, None), (broker.url.replace("tls:", "nats:"), None)):
            with pytest.raises(BrokerUnreachable, match=r"(?i)certificate"):
                await Bus.connect(url, broker.token, ca_file=ca_file, timeout=1.0)
        with pytest.raises(BrokerUnreachable, match="cannot be read"):
            await Bus.connect(broker.url, broker.token, ca_file=secret)
