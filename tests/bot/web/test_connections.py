"""Strangers who only hold connections take neither descriptors, memory nor time from honest visitors."""

from __future__ import annotations

import asyncio
import logging
import resource
import socket
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from bot.web import connections
from bot.web.connections import ConnectionLimits, ConnectionTable, address_group, raise_descriptor_limit
from bot.web.middleware import SECURITY_HEADERS
from tools.painter import cancel_task

if TYPE_CHECKING:
    from shared.web_server import OpenServer, WebServer

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
HALF_OPEN_SOCKETS = 5000
HALF_REQUEST = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: "
HOLD_SOCKETS = """
import resource, socket, sys
port, count = int(sys.argv[1]), int(sys.argv[2])
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
held = []
for _ in range(count if hard < 0 else min(count, hard - 64)):
    connection = socket.create_connection(("127.0.0.1", port), timeout=60)
    try:
        connection.send(b"GET / HTTP/1.1\\r\\nHost: 127.0.0.1\\r\\nX-Slow: ")
    except OSError:
        pass  # closed already, to make place
    held.append(connection)
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def few_descriptors() -> Iterator[None]:
    """The soft limit that most systems begin with."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@asynccontextmanager
async def hold_sockets(port: int, count: int) -> AsyncIterator[asyncio.StreamReader]:
    """Opens half-open connections from another process; yields its output, which says when it holds them."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        HOLD_SOCKETS,
        str(port),
        str(count),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield process.stdout
    finally:
        process.stdin.close()
        await process.wait()


async def measure_health(url: str) -> float:
    """Returns how many seconds `/healthz` took, on a connection of its own."""
    started_at = time.monotonic()
    timeout = aiohttp.ClientTimeout(total=10)
    async with aiohttp.ClientSession(timeout=timeout) as session, session.get(f"{url}/healthz") as answer:
        assert answer.status == 200
    return time.monotonic() - started_at


@pytest.mark.slow
@pytest.mark.asyncio
@pytest.mark.usefixtures("few_descriptors")
async def test_healthz_answers_within_a_second_under_5000_half_open_sockets(
    open_server: OpenServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_server(workers=0) as server, hold_sockets(server.port, HALF_OPEN_SOCKETS) as output:
        held_task = asyncio.create_task(output.readline())
        seconds = list[float]()
        async with asyncio.timeout(120):
            while not held_task.done():
                seconds.append(await measure_health(server.url))
        assert await held_task == b"held\n"
        seconds += [await measure_health(server.url) for _ in range(20)]
    assert max(seconds) < 1.0
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


@asynccontextmanager
async def send_raw(
    server: WebServer, content: bytes
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Opens a connection and sends bytes that need not be HTTP."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        writer.write(content)
        yield reader, writer
    finally:
        writer.close()


async def read_to_end(reader: asyncio.StreamReader, seconds: float = 5.0) -> bytes:
    """Reads until the server closes the connection."""
    content = b""
    with suppress(ConnectionResetError):
        async with asyncio.timeout(seconds):
            while chunk := await reader.read(4096):
                content += chunk
    return content


@pytest.mark.asyncio
async def test_a_request_whose_headers_do_not_arrive_is_closed(
    open_server: OpenServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bot.web.app.HEADER_SECONDS", 0.2)
    async with open_server(workers=0) as server, send_raw(server, HALF_REQUEST) as (reader, writer):

        async def drip() -> None:
            while True:
                await asyncio.sleep(0.05)
                writer.write(b"x")

        drip_task = asyncio.create_task(drip())
        assert await read_to_end(reader) == b""
        await cancel_task(drip_task)


@pytest.mark.asyncio
async def test_endless_headers_are_cut_off(server: WebServer) -> None:
    async with send_raw(server, b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n") as (reader, writer):
        for number in range(100):
            writer.write(b"X-%d: %s\r\n" % (number, b"x" * 4000))
        assert not (await read_to_end(reader)).startswith(b"HTTP/1.1 2")


def shrink_send_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has the kernel keep little of what the server sends: else it takes 4 MB of answers that nobody reads."""
    connect = connections.GuardedConnection.connection_made

    def connect_with_small_buffer(self: connections.GuardedConnection, transport: asyncio.BaseTransport) -> None:
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4608)
        connect(self, transport)

    monkeypatch.setattr(connections.GuardedConnection, "connection_made", connect_with_small_buffer)


@pytest.mark.asyncio
async def test_a_client_that_reads_nothing_is_closed(server: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    shrink_send_buffers(monkeypatch)
    monkeypatch.setattr(connections, "STALL_SECONDS", 0.1)
    monkeypatch.setattr(connections, "STALL_BYTES", 1)
    request = f"GET /static/chatroom.js HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n\r\n".encode()
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.setblocking(False)
        async with asyncio.timeout(20):
            while True:
                await asyncio.sleep(0.02)
                try:
                    client.send(request * 100)
                except BlockingIOError:
                    continue
                except ConnectionError:
                    break


@pytest.mark.asyncio
async def test_a_client_that_reads_nothing_is_closed_after_its_last_answer(
    server: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answers fit into the transport's buffer, so writing never pauses; then the server wants to close."""
    monkeypatch.setattr(connections, "STALL_SECONDS", 0.1)
    shrink_send_buffers(monkeypatch)
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        client.connect(("127.0.0.1", server.port))
        request = f"GET /static/chatroom.js HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n\r\n".encode()
        client.sendall(request * 4)
        await asyncio.sleep(0.5)  # the server reads the next bytes apart from these
        client.sendall(b"no HTTP\r\n\r\n")
        async with asyncio.timeout(20):
            while not _is_refused(client):
                await asyncio.sleep(0.05)


def _is_refused(client: socket.socket) -> bool:
    """Send a byte; a closed socket answers the first one by a reset."""
    try:
        client.send(b"x")
    except ConnectionError:
        return True
    return False


@pytest.mark.asyncio
async def test_answers_to_what_is_no_http_have_the_safety_headers_and_no_traceback(
    server: WebServer, caplog: pytest.LogCaptureFixture
) -> None:
    for content in (b"\x16\x03\x01\x02\x00\r\n\r\n", b"GET / HTTP/1.1\r\nno header\r\n\r\n", b"GET  HTTP/9.9\r\n\r\n"):
        async with send_raw(server, content) as (reader, _):
            answer = (await read_to_end(reader)).decode("latin-1")
        assert answer.startswith(("HTTP/1.0 400", "HTTP/1.1 400")), answer
        for name, value in SECURITY_HEADERS.items():
            assert f"{name}: {value}\r\n" in answer
    assert [record for record in caplog.records if record.exc_info] == []


PART_HEAD = b'--b\r\nContent-Disposition: form-data; name="picture"\r\n\r\n'
BROKEN_BODIES = (
    b"Content-Encoding: gzip\r\nContent-Length: 4\r\n\r\nabcd",
    b"Content-Type: multipart/form-data; boundary=b\r\nContent-Length: 900\r\n\r\n%shalf" % PART_HEAD,
)


@pytest.mark.asyncio
@pytest.mark.parametrize("body", BROKEN_BODIES, ids=["no gzip", "cut off"])
async def test_a_body_that_breaks_off_puts_no_traceback_into_the_log(
    server: WebServer, caplog: pytest.LogCaptureFixture, body: bytes
) -> None:
    """Anybody could fill the log with them."""
    caplog.set_level(logging.INFO)
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    cookie = await server.start_session("operator")
    head = f"POST /api/jobs HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nX-Darkroom: 1\r\nCookie: {cookie}\r\n"
    writer.write(head.encode() + body)
    await writer.drain()
    writer.write_eof()
    with suppress(ConnectionError):
        await reader.read()
    writer.close()
    while not any("broke off" in record.getMessage() for record in caplog.records):
        await asyncio.sleep(0.01)
    assert not any(record.exc_info for record in caplog.records)


@pytest.mark.asyncio
async def test_browsers_may_use_http_where_the_public_address_has_no_https(server: WebServer) -> None:
    async with server.client.get(f"{server.url}/healthz") as answer:
        assert "Strict-Transport-Security" not in answer.headers


@pytest.mark.asyncio
async def test_browsers_keep_to_https_behind_such_an_address(open_server: OpenServer) -> None:
    async with open_server(workers=0, public_url="https://pictures.example") as server:
        for path in ("/healthz", "/nothing-here"):
            headers = {"Host": "pictures.example"}
            async with server.client.get(server.url + path, headers=headers) as answer:
                assert answer.headers["Strict-Transport-Security"] == "max-age=31536000", path
        async with send_raw(server, b"no http\r\n\r\n") as (reader, _):
            assert b"Strict-Transport-Security: max-age=31536000\r\n" in await read_to_end(reader)


class FakeConnection:
    """A connection as the table sees it."""

    def __init__(self, group: str = "", is_receiving: bool = False) -> None:
        self.group = group
        self.is_receiving = is_receiving
        self.is_aborted = False

    def abort(self) -> None:
        self.is_aborted = True


def add_connections(table: ConnectionTable, *added: Any) -> list[bool]:
    return [table.add(connection) for connection in added]


def test_the_one_that_waits_longest_gives_way_and_one_at_work_does_not():
    clock = [0.0]
    table = ConnectionTable(2, 9, clock=lambda: clock[0])
    first, second, third, fourth, fifth = [FakeConnection() for _ in range(5)]
    assert add_connections(table, first, second, third) == [True, True, False], "both came just now"
    assert not table.has_room()
    clock[0] = connections.GRACE_SECONDS
    assert table.has_room()
    assert add_connections(table, third) == [True]
    assert [each.is_aborted for each in (first, second, third)] == [True, False, False]
    table.mark_working(second)
    table.mark_working(third)
    assert (table.has_room(), table.add(fourth)) == (False, False)
    third.is_receiving = True
    assert (table.has_room(), table.add(fourth)) == (True, True)
    assert (second.is_aborted, third.is_aborted, len(table)) == (False, True, 2)
    clock[0] = 1.0
    table.mark_waiting(second)
    clock[0] = 2.0
    assert add_connections(table, fifth) == [True]
    assert (fourth.is_aborted, second.is_aborted) == (True, False), "the second began to wait after the fourth"


def test_an_address_has_its_own_limit_and_takes_place_from_itself():
    table = ConnectionTable(9, 2)
    other = FakeConnection("203.0.113.9")
    own = [FakeConnection("198.51.100.7") for _ in range(3)]
    assert add_connections(table, other, *own) == [True] * 4
    assert [each.is_aborted for each in (other, *own)] == [False, True, False, False]
    for each in own[1:]:
        table.mark_working(each)
    assert add_connections(table, FakeConnection("198.51.100.7"), FakeConnection()) == [False, True]
    for each in (other, *own):
        table.remove(each)
    assert (len(table), table._groups) == (1, {})


def test_addresses_share_a_limit_by_network_and_proxies_have_none():
    assert address_group("8.8.8.8") == address_group("::ffff:8.8.8.8") == "8.8.8.8"
    assert address_group("2606:4700::1") == address_group("2606:4700::2:1") == "2606:4700::/64"
    for host in ("127.0.0.1", "10.0.0.1", "192.168.1.9", "::1", "fe80::1%eth0", "100.64.0.1", ""):
        assert address_group(host) == "", host


@pytest.mark.usefixtures("few_descriptors")
def test_connections_stay_below_the_limit_of_descriptors_which_is_raised_at_start():
    assert ConnectionLimits(2000).below_descriptors() == 1024 - connections.RESERVED_DESCRIPTORS
    assert ConnectionLimits(100).below_descriptors() == 100
    raise_descriptor_limit()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    expected = connections.MAX_DESCRIPTORS if hard < 0 else min(connections.MAX_DESCRIPTORS, hard)
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == expected
