"""Limits on what connections may hold: descriptors, memory and time. No client needs a session to reach these limits.

The web server has a bounded number of connections, in all and for each address. When one more comes, the connection
that has waited longest without a request gives way, then one whose request has not arrived. So clients that only hold
connections open delay nobody. If every connection has a request at work, the new one is closed.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import resource
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

from aiohttp import StreamReader, web, web_fileresponse, web_protocol
from aiohttp.http_exceptions import HttpProcessingError

log = logging.getLogger(__name__)

MAX_DESCRIPTORS = 16_384  # we raise the process's soft limit up to this, if its hard limit allows that
RESERVED_DESCRIPTORS = 768  # for database, broker and files, and for connections that are accepted or closed just now
MIN_CONNECTIONS = 64  # even where the limit of descriptors is low
GRACE_SECONDS = 0.05  # in which a connection without a request need not give way
MAX_HEADER_BYTES = 64 * 1024  # of one request's line and headers
STALL_SECONDS = 60.0  # in which a client reads at least `STALL_BYTES` of what waits for it
STALL_BYTES = 32 * 1024
setattr(web_fileresponse, "NOSENDFILE", True)  # noqa: B010 - sendfile would bypass the buffer that we watch


@dataclass(frozen=True)
class ConnectionLimits:
    """The most connections, in all and for each public address."""

    total: int = 2000
    per_address: int = 64

    def below_descriptors(self) -> int:
        """Return the most connections in all that the process's limit of descriptors allows."""
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return self.total if soft < 0 else min(self.total, max(MIN_CONNECTIONS, soft - RESERVED_DESCRIPTORS))


def raise_descriptor_limit() -> None:
    """Raise this process's soft limit of descriptors as far as its hard limit and `MAX_DESCRIPTORS` allow."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_DESCRIPTORS if hard < 0 else min(MAX_DESCRIPTORS, hard)
    if 0 <= soft < wanted:
        with suppress(ValueError, OSError):  # macOS has a lower limit of its own
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


@lru_cache(4096)
def address_group(host: str) -> str:
    """Return what shares the limit of one address: an IPv4 address, or an IPv6 network of 64 bits.

    Empty for addresses of this machine and of private networks: a proxy there speaks for many clients.
    """
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return ""
    address = getattr(address, "ipv4_mapped", None) or address
    if not address.is_global:
        return ""
    return str(address) if address.version == 4 else str(ipaddress.ip_network((int(address), 64), strict=False))


class Connection(Protocol):
    """A connection as the table sees it. `group`: what shares the limit of one address; empty: no such limit.

    `is_receiving`: whether the body of a request is still arriving.
    """

    group: str

    @property
    def is_receiving(self) -> bool: ...

    def abort(self) -> None:
        """Close the connection now, even if the client reads nothing."""
        ...


class ConnectionTable:
    """The open connections of one server."""

    def __init__(self, total: int, per_address: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._total = total
        self._per_address = per_address
        self._clock = clock
        self._waiting: dict[Connection, float] = {}  # without a request, since when; the oldest first
        self._working: dict[Connection, None] = {}  # with a request, in the order of those
        self._groups: dict[str, dict[Connection, None]] = {}  # by address

    def __len__(self) -> int:
        return len(self._waiting) + len(self._working)

    def has_room(self) -> bool:
        """Return whether there is place for one more, or one that can give way."""
        return len(self) < self._total or self._find_victim() is not None

    def add(self, connection: Connection) -> bool:
        """Add a connection; another one gives way if there are too many. False: no other can, close this one."""
        group = self._groups.get(connection.group, {})
        if len(group) >= self._per_address:
            victim = next((c for c in group if c in self._waiting), None) or _first_receiving(group)
        elif len(self) >= self._total:
            victim = self._find_victim()
        else:
            return self._put(connection)
        if victim is None:
            return False
        self.remove(victim)
        victim.abort()
        return self._put(connection)

    def _put(self, connection: Connection) -> bool:
        self._waiting[connection] = self._clock()
        if connection.group:
            self._groups.setdefault(connection.group, {})[connection] = None
        return True

    def _find_victim(self) -> Connection | None:
        oldest = next(iter(self._waiting), None)
        if oldest is None:
            return _first_receiving(self._working)
        return oldest if self._clock() - self._waiting[oldest] >= GRACE_SECONDS else None

    def remove(self, connection: Connection) -> None:
        """Forget a connection that is closed; idempotent."""
        self._waiting.pop(connection, None)
        self._working.pop(connection, None)
        if (group := self._groups.get(connection.group)) is not None:
            group.pop(connection, None)
            if not group:
                del self._groups[connection.group]

    def replace(self, old: Connection, new: Connection) -> None:
        """Put a connection, whose request has arrived, in place of another one."""
        self.remove(old)
        self._working[new] = None
        if new.group:
            self._groups.setdefault(new.group, {})[new] = None

    def mark_working(self, connection: Connection) -> None:
        """Note that a request of this connection has begun."""
        if connection in self._waiting:
            del self._waiting[connection]
            self._working[connection] = None

    def mark_waiting(self, connection: Connection) -> None:
        """Note that no request of this connection is at work."""
        if connection in self._working:
            del self._working[connection]
            self._waiting[connection] = self._clock()


def _first_receiving(connections: Iterable[Connection]) -> Connection | None:
    return next((connection for connection in connections if connection.is_receiving), None)


class GuardedConnection(web_protocol.RequestHandler):
    """aiohttp's protocol of one connection, with limits. `error_headers`: of the answers that no application makes."""

    def __init__(
        self, manager: web.Server, *, table: ConnectionTable, error_headers: Mapping[str, str], **options: Any
    ) -> None:
        super().__init__(manager, loop=asyncio.get_running_loop(), **options)
        self._table = table
        self._error_headers = error_headers
        self._socket_transport: asyncio.Transport | None = None  # aiohttp's own is gone before the socket is closed
        self._stall_timer: asyncio.TimerHandle | None = None
        self._header_bytes = 0
        self._payload: StreamReader | None = None  # the body of the newest request
        self._is_aborted = False
        # `first_bytes`: what arrived before aiohttp had the connection
        self.group = ""
        self.first_bytes = b""

    @property
    def is_receiving(self) -> bool:
        """Whether the body of a request is still arriving."""
        return self._payload is not None and not self._payload.is_eof()

    def abort(self) -> None:
        """Close the connection now, even if the client reads nothing."""
        self._is_aborted = True
        if self._socket_transport is not None:
            self._socket_transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._socket_transport = transport
        if self._is_aborted:
            return transport.abort()
        super().connection_made(transport)
        self.data_received(self.first_bytes)
        self.first_bytes = b""
        if self._request_count == 0:
            self._table.mark_waiting(self)

    async def start(self) -> None:
        """Serve the connection's requests. The client must read in time what is unsent at the end."""
        try:
            await super().start()
        finally:
            if self._socket_transport is not None and self._socket_transport.get_write_buffer_size():
                self._watch_reader()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._table.remove(self)
        if self._stall_timer is not None:
            self._stall_timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        was_receiving = self.is_receiving
        count_before = self._request_count
        super().data_received(data)
        if self._request_count > count_before:
            self._table.mark_working(self)
            if self._messages:
                self._payload = self._messages[-1][1]
        elif not was_receiving:
            self._header_bytes += len(data)
            if self._header_bytes > MAX_HEADER_BYTES:
                self.abort()
            return
        self._header_bytes = 0

    async def _handle_request(
        self,
        request: web.BaseRequest,
        start_time: float | None,
        request_handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]],
    ) -> tuple[web.StreamResponse, bool]:
        try:
            return await super()._handle_request(request, start_time, request_handler)
        finally:
            if not self._messages:
                self._table.mark_waiting(self)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_reader()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stall_timer is not None:
            self._stall_timer.cancel()

    def _watch_reader(self, size_before: int | None = None) -> None:
        """Abort if the client has read too little since the last look; else look again later."""
        assert self._socket_transport is not None
        if self._stall_timer is not None:
            self._stall_timer.cancel()
        size = self._socket_transport.get_write_buffer_size()
        if size_before is not None and size > size_before - STALL_BYTES:
            return self.abort()
        self._stall_timer = self._loop.call_later(STALL_SECONDS, self._watch_reader, size)

    def log_exception(self, *args: Any, **kw: Any) -> None:
        """Log one line for what only the client caused: a body that cannot be read, a connection that it closed."""
        cause = kw.get("exc_info")
        if isinstance(cause, web_protocol.RequestPayloadError | HttpProcessingError | ConnectionError):
            log.info("a request broke off: %s", type(cause).__name__)
        else:
            super().log_exception(*args, **kw)

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        """Answer what is no HTTP, and errors outside of the application, with the headers of every answer."""
        if status < 500:  # anyone can send that: no traceback in the log
            log.info("a malformed request from %s: %s", request.remote, type(exc).__name__)
            response: web.StreamResponse = web.Response(status=status, text=f"{status}: a malformed request.\n")
            response.force_close()
        else:
            response = super().handle_error(request, status, exc, message)
        response.headers.update(self._error_headers)
        return response
