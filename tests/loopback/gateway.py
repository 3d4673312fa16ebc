"""Discord's gateway: sessions that outlive their sockets, sequence numbers, resuming, and what may go wrong there.

Knows the protocol (HELLO, IDENTIFY, RESUME, beats, orders to reconnect); what an event holds is simcord's business.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import zlib
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import discord
from aiohttp import WSMsgType, web
from simcord.backend import serializers
from simcord.gateway import FakeGateway

from loopback.world import World

DISPATCH, BEAT, IDENTIFY, RESUME, RECONNECT, INVALID, HELLO, ACK = 0, 1, 2, 6, 7, 9, 10, 11
REPLAYED = 1000  # events that a session remembers for a client that comes back


class Line:
    """One socket: sends in order what it is given, compressed as the client asked."""

    def __init__(self, socket: web.WebSocketResponse, transport: asyncio.Transport | None, compress: str) -> None:
        self.socket, self.transport = socket, transport
        self._squeeze = zlib.compressobj() if compress == "zlib-stream" else None
        self._out: asyncio.Queue[str] = asyncio.Queue()

    def put(self, said: Mapping[str, Any] | str) -> None:
        self._out.put_nowait(said if isinstance(said, str) else json.dumps(said))

    async def write(self) -> None:
        with suppress(ConnectionError):
            while True:
                text = await self._out.get()
                if self._squeeze:
                    packed = self._squeeze.compress(text.encode()) + self._squeeze.flush(zlib.Z_SYNC_FLUSH)
                    await self.socket.send_bytes(packed)
                else:
                    await self.socket.send_str(text)

    def cut(self) -> None:
        """As a network fails: no closing handshake."""
        if self.transport:
            self.transport.abort()


@dataclass
class Session:
    """What a client has on one shard: it may lose its line and come back."""

    id: str
    shard: int
    number: int = 0
    line: Line | None = None
    sent: deque[tuple[int, str]] = field(default_factory=lambda: deque(maxlen=REPLAYED))

    def tell(self, event: str, payload: Mapping[str, Any]) -> None:
        self.number += 1
        text = json.dumps({"op": DISPATCH, "s": self.number, "t": event, "d": payload}, default=dict)
        self.sent.append((self.number, text))
        if self.line:
            self.line.put(text)

    def replay(self, after: int) -> None:
        assert self.line
        for number, text in tuple(self.sent):
            if number > after:
                self.line.put(text)


class Parsers(dict[str, Callable[[Any], None]]):
    """simcord decides what a session may see and calls the parser of the event: ours sends it on."""

    def __init__(self, session: Session) -> None:
        super().__init__()
        self._session = session

    def __missing__(self, event: str) -> Callable[[Any], None]:
        return lambda payload: self._session.tell(event, payload)


class Gateway:
    """All sessions of one bot, and the orders that a test gives. `url` is known once the server listens."""

    def __init__(self, world: World, token: str) -> None:
        self.world, self.token, self.url = world, token, ""
        self.sessions: dict[str, Session] = {}
        self.log: list[tuple[str, int]] = []  # ("IDENTIFY", shard), ("RESUME", shard), ("INVALID", shard), in order
        self.beats = 0
        self.interval = 41.25  # seconds between a client's beats, as HELLO says
        self.acknowledges = True  # False: beats are not answered
        self.away = False  # True: nobody can connect
        self._seen: dict[str, FakeGateway] = {}
        self._names = itertools.count(1)
        world.backend.subscribers.append(self.hear)

    def hear(self, event: str, payload: Mapping[str, Any]) -> None:
        """Something happened in the world: it goes to the sessions of its shard."""
        shard = self.world.shard_of(event, payload)
        for session in self.sessions.values():
            if session.shard == shard:
                self._seen[session.id].feed(event, self.world.as_told(event, payload))

    def ready(self) -> bool:
        """True while every shard has a session with a line."""
        return {one.shard for one in self.sessions.values() if one.line} == set(range(self.world.shards))

    def drop(self) -> None:
        """Every line breaks, without a word."""
        for line in self._lines():
            line.cut()

    def order_reconnect(self) -> None:
        for line in self._lines():
            line.put({"op": RECONNECT, "d": None})

    def invalidate(self, *, resumable: bool) -> None:
        """The sessions are told to come anew: with what they missed, or from nothing."""
        for session in [one for one in self.sessions.values() if one.line]:
            assert session.line
            session.line.put({"op": INVALID, "d": resumable})
            if not resumable:
                self._forget(session)

    def forget(self) -> None:
        """Every line breaks, and no session can be resumed any more; who tries is told so."""
        self.drop()
        for session in list(self.sessions.values()):
            self._forget(session)

    def _forget(self, session: Session) -> None:
        del self.sessions[session.id], self._seen[session.id]

    def _lines(self) -> list[Line]:
        return [one.line for one in self.sessions.values() if one.line]

    async def connect(self, request: web.Request) -> web.StreamResponse:
        """One connection, from HELLO until it ends."""
        if self.away:
            return web.Response(status=503)
        socket = web.WebSocketResponse(max_msg_size=1 << 20)
        await socket.prepare(request)
        line = Line(socket, request.transport, request.query.get("compress", ""))
        line.put({"op": HELLO, "d": {"heartbeat_interval": round(1000 * self.interval)}, "s": None, "t": None})
        writing = asyncio.create_task(line.write())
        try:
            async for message in socket:
                if message.type is WSMsgType.TEXT:
                    await self._take(line, json.loads(message.data))
        finally:
            writing.cancel()
            for session in self.sessions.values():
                if session.line is line:
                    session.line = None
        return socket

    async def _take(self, line: Line, said: dict[str, Any]) -> None:
        if said["op"] == BEAT:
            self.beats += 1
            if self.acknowledges:  # not at once: discord.py notes only after sending when it sent
                asyncio.get_running_loop().call_later(0.05, line.put, {"op": ACK, "d": None})
        elif said["op"] in (IDENTIFY, RESUME) and said["d"]["token"] != self.token:
            await line.socket.close(code=4004, message=b"Authentication failed.")
        elif said["op"] == IDENTIFY:
            self._identify(line, said["d"])
        elif said["op"] == RESUME:
            self._resume(line, said["d"])

    def _identify(self, line: Line, said: dict[str, Any]) -> None:
        shard = said.get("shard", [0, 1])[0]
        for gone in [one for one in self.sessions.values() if one.shard == shard and not one.line]:
            self._forget(gone)
        session = Session(f"session-{next(self._names)}", shard, line=line)
        self.sessions[session.id] = session
        state = SimpleNamespace(intents=discord.Intents._from_value(said["intents"]), parsers=Parsers(session))
        seen = self._seen[session.id] = FakeGateway(self.world.backend, state)
        self.log.append(("IDENTIFY", shard))
        guilds = [one for one in self.world.backend.guilds.values() if self.world.shard_of("", _of(one)) == shard]
        session.tell("READY", self._ready(session, guilds))
        for guild in guilds:
            seen.feed("GUILD_CREATE", serializers.guild_create_payload(self.world.backend, guild))

    def _ready(self, session: Session, guilds: list[Any]) -> dict[str, Any]:
        backend = self.world.backend
        return {
            "v": 10, "user": serializers.user_payload(backend.bot_user), "session_id": session.id,
            "guilds": [{"id": str(one.id), "unavailable": True} for one in guilds],
            "resume_gateway_url": self.url.replace("/gateway/", f"/resume/{session.id}/"),
            "shard": [session.shard, self.world.shards],
            "application": {"id": str(backend.application_id), "flags": 0},
        }  # fmt: skip

    def _resume(self, line: Line, said: dict[str, Any]) -> None:
        session = self.sessions.get(said["session_id"])
        if session is None:
            self.log.append(("INVALID", 0))
            line.put({"op": INVALID, "d": False})
            return
        self.log.append(("RESUME", session.shard))
        session.line = line
        session.replay(int(said["seq"] or 0))
        session.tell("RESUMED", {})


def _of(guild: Any) -> dict[str, str]:
    return {"guild_id": str(guild.id)}
