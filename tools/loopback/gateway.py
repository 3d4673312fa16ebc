"""Discord's gateway: sessions that outlive their sockets, sequence numbers, RESUME, and gateway faults.

Knows the protocol (HELLO, IDENTIFY, RESUME, heartbeats, RECONNECT). simcord decides what an event contains.
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

from tools.loopback.world import World

DISPATCH = 0
HEARTBEAT = 1
IDENTIFY = 2
RESUME = 6
RECONNECT = 7
INVALID_SESSION = 9
HELLO = 10
HEARTBEAT_ACK = 11
REPLAY_LIMIT = 1000  # events that a session keeps for a client that resumes


class Connection:
    """One socket: sends events in order, compressed as the client asked."""

    def __init__(self, socket: web.WebSocketResponse, transport: asyncio.Transport | None, compress: str) -> None:
        self.socket = socket
        self.transport = transport
        self._compressor = zlib.compressobj() if compress == "zlib-stream" else None
        self._queue: asyncio.Queue[str] = asyncio.Queue()

    def put(self, event: Mapping[str, Any] | str) -> None:
        self._queue.put_nowait(event if isinstance(event, str) else json.dumps(event))

    async def write(self) -> None:
        with suppress(ConnectionError):
            while True:
                text = await self._queue.get()
                if self._compressor:
                    data = self._compressor.compress(text.encode()) + self._compressor.flush(zlib.Z_SYNC_FLUSH)
                    await self.socket.send_bytes(data)
                else:
                    await self.socket.send_str(text)

    def abort(self) -> None:
        """Drops the socket without a closing handshake, as a network failure does."""
        if self.transport:
            self.transport.abort()


@dataclass
class Session:
    """A client's session on one shard. It survives the loss of its connection."""

    id: str
    shard: int
    number: int = 0
    connection: Connection | None = None
    sent_events: deque[tuple[int, str]] = field(default_factory=lambda: deque(maxlen=REPLAY_LIMIT))

    def send_event(self, event: str, payload: Mapping[str, Any]) -> None:
        self.number += 1
        text = json.dumps({"op": DISPATCH, "s": self.number, "t": event, "d": payload}, default=dict)
        self.sent_events.append((self.number, text))
        if self.connection:
            self.connection.put(text)

    def replay(self, after: int) -> None:
        assert self.connection
        for number, text in tuple(self.sent_events):
            if number > after:
                self.connection.put(text)


class Parsers(dict[str, Callable[[Any], None]]):
    """simcord decides what a session may see and calls the event's parser; these parsers forward it."""

    def __init__(self, session: Session) -> None:
        super().__init__()
        self._session = session

    def __missing__(self, event: str) -> Callable[[Any], None]:
        return lambda payload: self._session.send_event(event, payload)


class Gateway:
    """All sessions of one bot, and the faults that a test triggers. `url` is known once the server listens."""

    def __init__(self, world: World, token: str) -> None:
        self.world = world
        self.token = token
        self.url = ""
        self.sessions: dict[str, Session] = {}
        self.log: list[tuple[str, int]] = []  # ("IDENTIFY", shard), ("RESUME", shard), ("INVALID", shard), in order
        self.heartbeat_count = 0
        self.interval = 41.25  # seconds between a client's heartbeats, as HELLO says
        self.acknowledges_heartbeats = True  # False: heartbeats get no answer
        self.is_unavailable = False  # True: nobody can connect
        self._feeds: dict[str, FakeGateway] = {}
        self._names = itertools.count(1)
        world.backend.subscribers.append(self.forward_event)

    def forward_event(self, event: str, payload: Mapping[str, Any]) -> None:
        """Sends an event of the world to the sessions of its shard."""
        shard = self.world.shard_of(event, payload)
        for session in self.sessions.values():
            if session.shard == shard:
                self._feeds[session.id].feed(event, self.world.add_member_fields(event, payload))

    def has_all_shards(self) -> bool:
        """Whether every shard has a connected session."""
        return {one.shard for one in self.sessions.values() if one.connection} == set(range(self.world.shards))

    def close_connections(self) -> None:
        """Drops every connection without notice."""
        for connection in self._connections():
            connection.abort()

    def order_reconnect(self) -> None:
        for connection in self._connections():
            connection.put({"op": RECONNECT, "d": None})

    def invalidate_sessions(self, *, is_resumable: bool) -> None:
        """Sends INVALID_SESSION: the client resumes with missed events, or identifies anew."""
        for session in [one for one in self.sessions.values() if one.connection]:
            assert session.connection
            session.connection.put({"op": INVALID_SESSION, "d": is_resumable})
            if not is_resumable:
                self._forget(session)

    def drop_sessions(self) -> None:
        """Drops every connection and session. A client that tries to resume gets INVALID_SESSION."""
        self.close_connections()
        for session in list(self.sessions.values()):
            self._forget(session)

    def _forget(self, session: Session) -> None:
        del self.sessions[session.id], self._feeds[session.id]

    def _connections(self) -> list[Connection]:
        return [one.connection for one in self.sessions.values() if one.connection]

    async def connect(self, request: web.Request) -> web.StreamResponse:
        """One connection, from HELLO until it ends."""
        if self.is_unavailable:
            return web.Response(status=503)
        socket = web.WebSocketResponse(max_msg_size=1 << 20)
        await socket.prepare(request)
        connection = Connection(socket, request.transport, request.query.get("compress", ""))
        connection.put({"op": HELLO, "d": {"heartbeat_interval": round(1000 * self.interval)}, "s": None, "t": None})
        writer = asyncio.create_task(connection.write())
        try:
            async for message in socket:
                if message.type is WSMsgType.TEXT:
                    await self._handle(connection, json.loads(message.data))
        finally:
            writer.cancel()
            for session in self.sessions.values():
                if session.connection is connection:
                    session.connection = None
        return socket

    async def _handle(self, connection: Connection, message: dict[str, Any]) -> None:
        if message["op"] == HEARTBEAT:
            self.heartbeat_count += 1
            if self.acknowledges_heartbeats:  # not at once: discord.py records the send time only after it sent
                asyncio.get_running_loop().call_later(0.05, connection.put, {"op": HEARTBEAT_ACK, "d": None})
        elif message["op"] in (IDENTIFY, RESUME) and message["d"]["token"] != self.token:
            await connection.socket.close(code=4004, message=b"Authentication failed.")
        elif message["op"] == IDENTIFY:
            self._identify(connection, message["d"])
        elif message["op"] == RESUME:
            self._resume(connection, message["d"])

    def _identify(self, connection: Connection, data: dict[str, Any]) -> None:
        shard = data.get("shard", [0, 1])[0]
        for stale_session in [one for one in self.sessions.values() if one.shard == shard and not one.connection]:
            self._forget(stale_session)
        session = Session(f"session-{next(self._names)}", shard, connection=connection)
        self.sessions[session.id] = session
        state = SimpleNamespace(intents=discord.Intents._from_value(data["intents"]), parsers=Parsers(session))
        feed = self._feeds[session.id] = FakeGateway(self.world.backend, state)
        self.log.append(("IDENTIFY", shard))
        guilds = [
            one for one in self.world.backend.guilds.values() if self.world.shard_of("", _guild_payload(one)) == shard
        ]
        session.send_event("READY", self._ready(session, guilds))
        for guild in guilds:
            feed.feed("GUILD_CREATE", serializers.guild_create_payload(self.world.backend, guild))

    def _ready(self, session: Session, guilds: list[Any]) -> dict[str, Any]:
        backend = self.world.backend
        return {
            "v": 10,
            "user": serializers.user_payload(backend.bot_user),
            "session_id": session.id,
            "guilds": [{"id": str(one.id), "unavailable": True} for one in guilds],
            "resume_gateway_url": self.url.replace("/gateway/", f"/resume/{session.id}/"),
            "shard": [session.shard, self.world.shards],
            "application": {"id": str(backend.application_id), "flags": 0},
        }

    def _resume(self, connection: Connection, data: dict[str, Any]) -> None:
        session = self.sessions.get(data["session_id"])
        if session is None:
            self.log.append(("INVALID", 0))
            connection.put({"op": INVALID_SESSION, "d": False})
            return
        self.log.append(("RESUME", session.shard))
        session.connection = connection
        session.replay(int(data["seq"] or 0))
        session.send_event("RESUMED", {})


def _guild_payload(guild: Any) -> dict[str, str]:
    return {"guild_id": str(guild.id)}
