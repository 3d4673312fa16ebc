"""Cookies and tokens that nobody gave: forged, altered, replayed; and an open room behind a proxy.

Knows that a right is something that a stranger does not have; nothing of how the room checks.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import random
import string
from collections.abc import Iterator

from tools.attack.visitors import Tally, Visitor

OWNER_PATH = "/api/rejections"  # only the owner may
VISITOR_PATH = "/api/jobs"  # every visitor may
PROXY_HEADERS = {
    "Via": "1.1 proxy",
    "Forwarded": "for=203.0.113.9",
    "X-Forwarded-For": "203.0.113.9",
    "X-Forwarded-Host": "room.example",
    "X-Forwarded-Proto": "https",
    "X-Forwarded-Port": "443",
    "X-Forwarded-Server": "proxy",
    "X-Real-IP": "203.0.113.9",
    "CF-Connecting-IP": "203.0.113.9",
    "CF-Ray": "1-FRA",
    "True-Client-IP": "203.0.113.9",
}
WEAK_KEYS = (b"", b"secret", b"darkroom", bytes(32), b"k" * 32)
ALPHABET = string.ascii_letters + string.digits


def forge_cookies(rng: random.Random, valid: str, count: int) -> Iterator[str]:
    """Cookies that look like a valid one: another role, another visitor, another signature, or cut."""
    name, _, value = valid.partition("=")
    parts = value.split(".")
    text = ".".join(parts[:-1])
    yield from (f"{name}={one}" for one in ("", ".", "..", "owner", "owner.1", f"owner.{parts[-1]}", value * 40))
    for role in {"owner", "operator", "admin", "guest", "terminal"} - {parts[0]}:
        yield f"{name}={'.'.join([role, *parts[1:]])}"
        yield f"{name}={role}.terminal.{parts[-1]}"
    for key in WEAK_KEYS:
        for message in (text, f"visitor:{text}", "owner.0000000000000000", "visitor:owner.0000000000000000"):
            signature = hmac.new(key, message.encode(), hashlib.sha256).hexdigest()
            yield f"{name}={message.removeprefix('visitor:')}.{signature}"
    yield f"{name}=" + base64.urlsafe_b64encode(b'{"alg":"none"}').decode() + "." + "e30."
    for _ in range(count):
        position = rng.randrange(len(value))
        letter = rng.choice(ALPHABET)
        if letter.lower() != value[position].lower():
            kinds = [value[:position] + letter + value[position + 1 :], value[:position], value + letter]
            yield f"{name}={rng.choice(kinds)}"


def forge_keys(rng: random.Random, worker_key: str, count: int) -> Iterator[str]:
    """Keys of the terminal, of the metrics and of programs that nobody has: random ones, and a worker's."""
    yield from ("Bearer ", "Bearer", "Basic b3duZXI6", f"Bearer {worker_key}", "Bearer \xff", "Bearer " + "0" * 64)
    yield from (f"Bearer {hmac.new(key, b'terminal', 'sha256').hexdigest()}" for key in WEAK_KEYS)
    yield from (f"Bearer {rng.randbytes(32).hex()}" for _ in range(count))
    for _ in range(count):
        secret = "dkr_" + base64.urlsafe_b64encode(rng.randbytes(32)).decode().rstrip("=")
        yield from (f"Bearer {secret}", "Basic " + base64.b64encode(f"any:{secret}".encode()).decode())


async def try_credentials(url: str, tally: Tally, credentials: list[dict[str, str]]) -> list[str]:
    """Returns a right for each of these credentials that is let in."""
    gate = asyncio.Semaphore(10)
    gained = list[str]()

    async def try_one(headers: dict[str, str]) -> None:
        async with gate:
            forger = Visitor("a forger", url, tally, headers)
            for path in (VISITOR_PATH, OWNER_PATH):
                if 200 <= (await forger.send("GET", path)).status < 400:
                    gained.append(f"GET {path} with {str(headers)[:120]}")

    await asyncio.gather(*(try_one(headers) for headers in credentials))
    return gained


async def replay_token(url: str, tally: Tally, owner: Visitor, at_once: int = 20) -> None:
    """One invitation, exchanged by many at once and again: it is worth one cookie."""
    answer = await owner.send_patiently("POST", "/api/invitations")
    token = answer.json()["path"].partition("token=")[2]
    strangers = [Visitor(f"stranger {k}", url, tally) for k in range(at_once)]
    attempts = [*strangers, strangers[0]]
    answers = await asyncio.gather(*(one.send("POST", "/api/entrance", {"token": token}) for one in attempts))
    if (count := sum(bool(one.cookie) for one in answers)) > 1:
        tally.gained_rights.append(f"one invitation gave {count} cookies")
    if (await Visitor("late", url, tally).send("POST", "/api/entrance", {"token": token})).cookie:
        tally.gained_rights.append("a used invitation gave a cookie")


async def replay_after_sign_out(tally: Tally, owner: Visitor, paths: list[str]) -> None:
    """A cookie is worth nothing after its visitor signed out. `paths`: the addresses that sign out."""
    for path in paths:
        guest = await owner.invite("a guest who left")
        await guest.send_patiently("POST", path)
        if 200 <= (await guest.send("GET", VISITOR_PATH)).status < 400:
            tally.gained_rights.append(f"GET {VISITOR_PATH} with a cookie after {path}")


async def reach_through_proxy(url: str, port: int, tally: Tally) -> None:
    """A room for this machine alone, behind a proxy: no stranger becomes its owner."""
    for name, value in PROXY_HEADERS.items():
        answer = await Visitor("a stranger behind a proxy", url, tally, {name: value}).send("GET", OWNER_PATH)
        if 200 <= answer.status < 400:
            tally.open_room_rights.append(f"the owner's rights in an open room in spite of {name}")
    for path in (OWNER_PATH, "/"):
        status = await _send_old_protocol(port, path)
        tally.count(status, f"GET {path} by HTTP/1.0")
        if 200 <= status < 400:
            tally.open_room_rights.append(f"{path} of an open room by HTTP/1.0, as a proxy asks")


async def _send_old_protocol(port: int, path: str) -> int:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n".encode())
    words = (await asyncio.wait_for(reader.readline(), 10)).split()
    writer.transport.abort()
    return int(words[1]) if len(words) > 1 else 0
