"""Accepts connections, and gives one to aiohttp when the headers of its first request have arrived.

Until then it costs one descriptor and a small buffer. So thousands of half-open connections cost little time.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

from bot.web.connections import MAX_HEADER_BYTES, ConnectionTable, GuardedConnection, address_group

log = logging.getLogger(__name__)

ACCEPT_BATCH = 64  # connections that are accepted before the event loop does something else
LISTEN_QUEUE = 4096  # connections that wait to be accepted; of more, a client tries again after a second
READ_BYTES = 16 * 1024
FULL_PAUSE_SECONDS = 0.01  # without accepting, while no connection can give way
ERROR_PAUSE_SECONDS = 1.0  # without accepting, after the system refused to
HEADER_ENDS = (b"\n\r\n", b"\n\n")

MakeConnection = Callable[[], GuardedConnection]


class Listener:
    """One listening socket, and the connections whose first request has not arrived."""

    def __init__(
        self, listening: socket.socket, table: ConnectionTable, make_connection: MakeConnection, header_seconds: float
    ) -> None:
        self.table = table
        self.header_seconds = header_seconds
        self._socket = listening
        self._make_connection = make_connection
        self._loop = asyncio.get_running_loop()
        self._half_open: set[HalfOpenConnection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._pause: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Listen and accept."""
        self._socket.setblocking(False)
        self._socket.listen(LISTEN_QUEUE)
        self._loop.add_reader(self._socket, self._accept)

    def close(self) -> None:
        """Stop listening, and close every connection without a request."""
        self._loop.remove_reader(self._socket)
        self._socket.close()
        if self._pause is not None:
            self._pause.cancel()
        for connection in list(self._half_open):
            connection.abort()

    def _accept(self) -> None:
        for _ in range(ACCEPT_BATCH):
            if not self.table.has_room():
                return self._pause_accepting(FULL_PAUSE_SECONDS)
            try:
                client, peer = self._socket.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:  # too many open files in the whole system, or no memory
                log.error("connections wait, since none can be accepted: %s", error)
                return self._pause_accepting(ERROR_PAUSE_SECONDS)
            client.setblocking(False)
            connection = HalfOpenConnection(self, client, address_group(str(peer[0])))
            if not self.table.add(connection):
                client.close()
                continue
            self._half_open.add(connection)
            connection.start()

    def _pause_accepting(self, seconds: float) -> None:
        self._loop.remove_reader(self._socket)
        self._pause = self._loop.call_later(seconds, self.start)

    def discard(self, connection: HalfOpenConnection) -> None:
        self._half_open.discard(connection)

    def hand_on(self, half_open: HalfOpenConnection, client: socket.socket, content: bytes) -> None:
        """Give a connection to aiohttp, with the bytes that have arrived."""
        connection = self._make_connection()
        connection.group = half_open.group
        connection.first_bytes = content
        self.table.replace(half_open, connection)
        task = self._loop.create_task(self._connect(connection, client))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(self, connection: GuardedConnection, client: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(lambda: connection, client)
        except OSError as error:
            log.info("a connection broke: %s", error)
            self.table.remove(connection)
            client.close()


class HalfOpenConnection:
    """A connection before its first request."""

    is_receiving = False

    def __init__(self, listener: Listener, client: socket.socket, group: str) -> None:
        self.group = group
        self._listener = listener
        self._client = client
        self._content = bytearray()
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Read until the headers are complete, for some seconds at most."""
        self._loop.add_reader(self._client, self._read_headers)
        self._timer = self._loop.call_later(self._listener.header_seconds, self.abort)

    def abort(self) -> None:
        """Close it; idempotent."""
        self._leave()
        self._listener.table.remove(self)
        self._client.close()

    def _leave(self) -> None:
        if self._client.fileno() >= 0:
            self._loop.remove_reader(self._client)
        if self._timer is not None:
            self._timer.cancel()
        self._listener.discard(self)

    def _read_headers(self) -> None:
        try:
            chunk = self._client.recv(READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            chunk = b""
        if not chunk:
            return self.abort()
        content = self._content
        content += chunk
        if any(end in content for end in HEADER_ENDS) or not content[:1].isalpha():  # the latter is no HTTP
            self._leave()
            self._listener.hand_on(self, self._client, bytes(content))
        elif len(content) > MAX_HEADER_BYTES:
            self.abort()


@asynccontextmanager
async def listen(
    host: str, port: int, table: ConnectionTable, make_connection: MakeConnection, *, header_seconds: float
) -> AsyncGenerator[int]:
    """Accept connections while the context lasts; yield the port. Raise OSError if it cannot be bound.

    `header_seconds`: until the headers of a connection's first request have arrived.
    """
    # asyncio resolves the host and binds; we only take over the sockets
    server = await asyncio.get_running_loop().create_server(asyncio.Protocol, host, port, start_serving=False)
    listeners = [Listener(bound.dup(), table, make_connection, header_seconds) for bound in server.sockets]
    port = int(server.sockets[0].getsockname()[1])
    server.close()
    try:
        for listener in listeners:
            listener.start()
        yield port
    finally:
        for listener in listeners:
            listener.close()
