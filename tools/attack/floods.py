"""Floods of connections: half-open ones, slow bodies, absurd headers, event streams. Knows sockets.

The attackers come from addresses of their own (127.0.x.y, which Linux lets everybody use), the honest visitor from
127.0.0.1.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import aiohttp

from tools.attack.visitors import Tally, Visitor

ADDRESSES = 25  # addresses of one flood
CONNECT_TIMEOUT = 5.0  # seconds
AT_ONCE = 250  # connections that are being opened
BODY_LIMIT = 15.0  # seconds after which a body of one byte a second is refused
ANSWER_TIMEOUT = 8.0  # seconds
HEAD = "Host: 127.0.0.1\r\n"
Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass
class Flood:
    """Connections to one server, each from the next address."""

    port: int
    tally: Tally
    net: int  # the third number of the addresses

    def __post_init__(self) -> None:
        self._numbers = itertools.cycle(range(1, ADDRESSES + 1))
        self._gate = asyncio.Semaphore(AT_ONCE)

    async def open(self, content: bytes) -> Stream | None:
        """Connects and sends the beginning of a request; None where the server lets nobody in."""
        async with self._gate:
            try:
                async with asyncio.timeout(CONNECT_TIMEOUT):
                    local = (f"127.0.{self.net}.{next(self._numbers)}", 0)
                    reader, writer = await asyncio.open_connection("127.0.0.1", self.port, local_addr=local)
                    writer.write(content)
                    return reader, writer
            except (OSError, TimeoutError):
                self.tally.count(0, "a connection")
                return None

    async def open_all(self, contents: Iterable[bytes]) -> list[Stream]:
        streams = await asyncio.gather(*(self.open(content) for content in contents))
        return [stream for stream in streams if stream is not None]

    async def read_status(self, stream: Stream, what: str, seconds: float = ANSWER_TIMEOUT) -> int:
        """The status of the answer; 0 if the server closed, or said nothing in time."""
        line = b""
        with suppress(OSError, TimeoutError, ValueError):
            async with asyncio.timeout(seconds):
                line = await stream[0].readline()
        words = line.split()
        status = int(words[1]) if len(words) > 1 and words[1].isdigit() else 0
        self.tally.count(status, what)
        return status


def close_all(streams: Sequence[Stream]) -> None:
    for _, writer in streams:
        writer.transport.abort()


async def hold_half_open(port: int, tally: Tally, count: int, seconds: float) -> str:
    """Connections that never send a whole request."""
    flood = Flood(port, tally, 1)
    beginnings = (b"", b"GET /", f"GET / HTTP/1.1\r\n{HEAD}X-More: ".encode())
    streams = await flood.open_all(itertools.islice(itertools.cycle(beginnings), count))
    await asyncio.sleep(seconds)
    open_count = sum(not (reader.at_eof() or writer.is_closing()) for reader, writer in streams)
    for _ in streams:
        tally.count(0, "half-open")
    close_all(streams)
    return f"{len(streams)} of {count} connected, {open_count} were open {seconds:.0f} s later"


async def send_slow_bodies(port: int, tally: Tally, count: int, guests: Sequence[Visitor]) -> int:
    """Bodies of one byte a second, half of them from strangers; returns how many the server still waits for."""
    flood = Flood(port, tally, 2)
    lengths = f"{HEAD}Content-Type: application/json\r\nContent-Length: 60000\r\n"
    stranger = f"POST /api/entrance HTTP/1.1\r\n{lengths}\r\n{{".encode()
    heads = [stranger, *(f"POST /api/jobs HTTP/1.1\r\n{lengths}{cookie_line(one)}\r\n{{".encode() for one in guests)]
    streams = await flood.open_all(heads[k % 2 and 1 + k % len(guests)] for k in range(count))
    statuses = [asyncio.create_task(flood.read_status(stream, "a slow body", BODY_LIMIT + 5)) for stream in streams]
    loop = asyncio.get_running_loop()
    waiting = list(zip(streams, statuses, strict=True))
    deadline = loop.time() + BODY_LIMIT
    while waiting and loop.time() < deadline:
        for (_, writer), _status in waiting:
            if not writer.is_closing():
                writer.write(b" ")
        await asyncio.sleep(1.0)
        waiting = [pair for pair in waiting if not pair[1].done()]
    close_all(streams)
    await asyncio.gather(*statuses)
    return len(waiting)


async def upload_beside_slow_ones(flood: Flood, slow: Sequence[Visitor], honest: Visitor, picture: bytes) -> int:
    """Each slow guest begins a form and sends no more; returns the status of an honest upload meanwhile."""
    head = "POST /api/jobs HTTP/1.1\r\nContent-Type: multipart/form-data; boundary=b\r\nContent-Length: 9000000\r\n"
    part = '\r\n--b\r\nContent-Disposition: form-data; name="picture"; filename="a.png"\r\n\r\n'
    begins = [f"{head}{HEAD}X-Darkroom: 1\r\n{cookie_line(guest)}{part}".encode() for guest in slow]
    streams = await flood.open_all(begins)
    for _ in range(5):
        await asyncio.sleep(0.3)
        for _, writer in streams:
            writer.write(b"\x00")
    form = aiohttp.FormData()
    form.add_field("request", '{"prompt": "", "strength": 0.4}', content_type="application/json")
    form.add_field("picture", picture, filename="a.png", content_type="image/png")
    answer = await honest.send("POST", "/api/jobs", form, X_Darkroom="1")
    close_all(streams)
    return answer.status


def cookie_line(visitor: Visitor) -> str:
    return f"Cookie: {visitor.headers['Cookie']}\r\n"


def draw_heads(rng: random.Random, count: int, cookie: str) -> list[bytes]:
    """Requests whose head is too long, too much, contradictory or nonsense."""
    get = f"GET / HTTP/1.1\r\n{HEAD}".encode()
    post = f"POST /api/jobs HTTP/1.1\r\n{HEAD}Content-Type: application/json\r\n{cookie}".encode()
    kinds = [
        lambda: get + b"".join(b"X-%d: %s\r\n" % (k, b"a" * 50) for k in range(rng.choice((200, 2000)))) + b"\r\n",
        lambda: get + b"X: " + b"a" * rng.choice((8_000, 20_000, 300_000)) + b"\r\n\r\n",
        lambda: b"GET /" + b"a" * rng.choice((9_000, 60_000)) + f" HTTP/1.1\r\n{HEAD}\r\n".encode(),
        lambda: get + b"Cookie: " + b"; ".join(b"darkroom=%d" % k for k in range(900)) + b"\r\n\r\n",
        lambda: post + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
        lambda: post + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /healthz HTTP/1.1\r\n\r\n",
        lambda: post + b"Transfer-Encoding: chunked\r\n\r\n" + rng.choice((b"zz\r\n", b"-1\r\n", b"f" * 40 + b"\r\n")),
        lambda: post + b"Content-Length: " + rng.choice((b"-1", b"1e9", b"9" * 30, b"\xff")) + b"\r\n\r\n",
        lambda: post + b"Content-Encoding: gzip\r\nContent-Length: 4\r\n\r\n\x1f\x8b\x00\x00",
        lambda: rng.choice((b"GET", b"\x16\x03\x01\x02", b"PRI * HTTP/2.0", b"G\x00T / HTTP/1.1")) + b"\r\n\r\n",
        lambda: f"{rng.choice(('TRACE', 'CONNECT', 'FOO', 'A' * 9000))} / HTTP/1.1\r\n{HEAD}\r\n".encode(),
        lambda: (
            b"GET "
            + rng.choice((b"//", b"/%00", b"/../../etc/passwd", b"/static/..%2f..%2fapp.py", b"/\xff"))
            + f" HTTP/1.1\r\n{HEAD}\r\n".encode()
        ),
        lambda: b"GET / HTTP/1.1\r\nHost: " + rng.choice((b"", b"evil.example", b"\xff", b"[::", b"a b")) + b"\r\n\r\n",
        lambda: rng.randbytes(rng.randint(1, 600)) + b"\r\n\r\n",
    ]
    return [kinds[number % len(kinds)]() for number in range(count)]


async def send_heads(port: int, tally: Tally, heads: Sequence[bytes]) -> None:
    """Sends each on a connection of its own and reads the status."""
    flood = Flood(port, tally, 3)

    async def send_one(head: bytes) -> None:
        if (stream := await flood.open(head)) is not None:
            await flood.read_status(stream, f"the head {head[:30]!r} … {head[-60:]!r}", 3.0)
            close_all([stream])

    for start in range(0, len(heads), 50):
        await asyncio.gather(*(send_one(head) for head in heads[start : start + 50]))


async def open_streams(port: int, tally: Tally, count: int, guests: Sequence[Visitor], seconds: float) -> str:
    """Opens live streams for the guests, keeps them, and closes all at once."""
    flood = Flood(port, tally, 4)
    heads = [f"GET /api/events HTTP/1.1\r\n{HEAD}{cookie_line(guest)}\r\n".encode() for guest in guests]
    streams = await flood.open_all(itertools.islice(itertools.cycle(heads), count))
    statuses = await asyncio.gather(*(flood.read_status(stream, "a stream") for stream in streams))
    await asyncio.sleep(seconds)
    close_all(streams)
    return f"{count} asked for, {statuses.count(200)} opened, {statuses.count(429)} refused with 429"
