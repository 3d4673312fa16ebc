"""The self-recovering connection to the broker, its credentials, and the error for an unreachable broker."""

from __future__ import annotations

import asyncio
import logging
import re
import ssl
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import nats
import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import NoRespondersError
from nats.protocol import parser

from engine.bus import subjects
from engine.bus.worker_keys import BadKey, derive_public_key

log = logging.getLogger(__name__)

PENDING_BYTES = 32 * 1024 * 1024  # buffered while the broker is away; the largest message is 8 MB
POLL_SECONDS = 0.5
CLIENT_OPTIONS: dict[str, Any] = {
    "connect_timeout": 5,
    "max_reconnect_attempts": -1,
    "reconnect_time_wait": 0.25,
    "pending_size": PENDING_BYTES,
    "ping_interval": 10,
    "max_outstanding_pings": 3,
}
AUTH_FAILURE = "authorization violation"


class BrokerUnreachable(ConnectionError):
    """The broker did not answer in time, or refused; the message names the operation."""


class ConnectionEnded(RuntimeError):
    """The connection has ended for good, though we did not close it: the process must be restarted."""


@contextmanager
def translate_errors(operation: str) -> Generator[None]:
    """Raise each failure of the client library inside as `BrokerUnreachable`; its text has `operation` and reason.

    No cancellation is lost. Before Python 3.12 `asyncio.wait_for`, which the library uses, swallows a cancellation that
    arrives together with the result (python/cpython#86296); a loop around it would then run for ever.
    """
    old_count = _count_cancellations()
    try:
        yield
    except (nats.errors.Error, TimeoutError, OSError) as error:
        if _count_cancellations() > old_count:
            raise asyncio.CancelledError from error
        reason = str(error) or type(error).__name__
        raise BrokerUnreachable(f"The broker could not be reached to {operation}: {reason}.") from error
    if _count_cancellations() > old_count:
        raise asyncio.CancelledError


def _count_cancellations() -> int:
    task = asyncio.current_task()
    return task.cancelling() if task else 0


@dataclass(frozen=True)
class Credentials:
    """Credentials of a connection, and its name.

    `token`: shared token, or `user:password`. `key`: the seed of a worker key, in place of a token. `ca_file`:
    certificates to trust for a `tls://` broker; None: those of the system.
    """

    name: str
    token: str = ""
    key: str = ""
    ca_file: Path | None = None

    def to_client_options(self, url: str) -> dict[str, Any]:
        """Return the client library's options. Raises `BrokerUnreachable` where the key or the file is invalid."""
        return self._auth_options() | (
            {"tls": _create_tls_context(self.ca_file, url)} if url.startswith("tls://") else {}
        )

    def _auth_options(self) -> dict[str, Any]:
        if self.key:
            try:
                derive_public_key(self.key)
            except BadKey as error:
                raise BrokerUnreachable(str(error)) from error
            return {"nkeys_seed_str": self.key, "inbox_prefix": subjects.make_inbox_subject(self.name)}
        user, colon, password = self.token.partition(":")  # as in an address: token@host, user:password@host
        return {"user": user, "password": password} if colon else {"token": self.token or None}


def _create_tls_context(ca_file: Path | None, url: str) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=ca_file)
    except (OSError, ssl.SSLError) as error:
        raise BrokerUnreachable(f"The certificates in {ca_file} cannot be read: {error}.") from error
    if ca_file is not None:
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # the file may be the broker's own certificate
        context.check_hostname = not _is_loopback(url)  # no certificate names the loopback address
    return context


def _is_loopback(url: str) -> bool:
    try:
        return ip_address(urlsplit(url).hostname or "").is_loopback
    except ValueError:
        return False


async def connect(
    url: str, credentials: Credentials, timeout: float, after_reconnect: Callable[[], Awaitable[None]]
) -> Client:
    """Return a client that calls `after_reconnect` after every loss, except where `wait_until_closed` says otherwise.

    Raises `BrokerUnreachable` when the first connection takes longer than `timeout` seconds, or the broker refuses us.
    """
    options = await asyncio.to_thread(credentials.to_client_options, url)
    client = HardenedClient()
    last_errors = list[Exception]()
    connected_event = asyncio.Event()
    close_tasks = set[asyncio.Task[None]]()

    async def on_error(error: Exception) -> None:
        was_refused = any("Authorization" in str(earlier) for earlier in last_errors)
        if not was_refused:  # errors after a refusal are only its consequences
            last_errors[:] = [error]
        log.log(logging.WARNING if client.is_connected else logging.DEBUG, "broker: %s", error)
        if AUTH_FAILURE in str(error).lower():  # the client would retry for ever, with the same result
            if not connected_event.is_set():
                raise error
            close_tasks.add(asyncio.create_task(client.close()))

    async def on_loss() -> None:
        if not client.is_closed:  # else we closed it ourselves
            log.warning("broker: connection lost, reconnecting")

    async def on_reconnect() -> None:
        log.info("broker: connected again")
        await after_reconnect()

    try:
        async with asyncio.timeout(timeout):
            await client.connect(
                servers=[url],
                name=credentials.name,
                error_cb=on_error,
                disconnected_cb=on_loss,
                reconnected_cb=on_reconnect,
                **CLIENT_OPTIONS,
                **options,
            )
    except (nats.errors.Error, TimeoutError, OSError) as error:
        await client.close()
        raise BrokerUnreachable(_describe_failure(url, credentials, (last_errors or [error])[0])) from error
    connected_event.set()
    return client


def _describe_failure(url: str, credentials: Credentials, reason: BaseException) -> str:
    text = str(reason) or type(reason).__name__
    if AUTH_FAILURE in text.lower():
        return f"The broker at {url} does not accept this {'key' if credentials.key else 'token'}: {text}."
    return f"No broker answers at {url}: {text}."


async def wait_until_closed(client: Client, is_closed_by_us: Callable[[], bool]) -> None:
    """Return when we have closed the client. Raises `ConnectionEnded` when it closed by itself.

    It closes by itself, without reconnecting, after a server error: a message beyond the limits, or a revoked token or
    key. From then on every call fails as in an endless outage, so a long-lived process awaits this beside its work. It
    polls because the client's `closed_cb` stays silent when the error comes during a reconnection.
    """
    while not client.is_closed:
        await asyncio.sleep(POLL_SECONDS)
    if not is_closed_by_us():
        reason = str(client.last_error or "no reason given")
        log.critical("broker: the connection has ended for good: %s", reason)
        raise ConnectionEnded(f"The connection to the broker has ended for good: {reason}.")


REPLY_HEADER = "Nats-Stream"  # header of a broker reply: the stream that it comes from
STATUS_HEADERS = ("Status", "Description")
FLUSH_SECONDS = 10
RETRY_PAUSES = (0.02, 0.1)  # seconds before a request without responders is sent again
SUBJECT_CHARS = 512  # far more than any of ours; the server closes a connection that sends a 4 KB line
_SPACES = str.maketrans(dict.fromkeys("\v\f", "\N{REPLACEMENT CHARACTER}"))  # which no valid subject contains
_NAME = rb"([^ \t\r\n]+)"  # the server ends a name only at these
_HEAD = rb"[ \t]+" + _NAME + rb"[ \t]+" + _NAME + rb"[ \t]+(" + _NAME + rb"[ \t]+)?"


def has_reply_header(block: bytes) -> bool:
    """Whether this header block belongs to a broker reply.

    The broker appends its headers to the message's own. An open or empty line in these could hide them from a line
    parser, so the whole block is searched.
    """
    return f"{REPLY_HEADER}:".lower().encode() in block.lower()


class HardenedClient(Client):
    """A NATS client whose read loop survives malformed messages."""

    async def _process_headers(self, headers: bytes | None) -> dict[str, str] | None:
        """Parse headers; keep the readable lines of a malformed block.

        A broker reply has no status: one that stands in it was written by the author of the stored message.
        """
        if not headers:
            return None
        block = bytes(headers)
        try:
            parsed = await super()._process_headers(block)
        except (ValueError, IndexError) as error:
            log.warning("broker: a message's headers cannot be read: %s", error)
            parsed = self._parse_header_lines(block.partition(b"\r\n")[2])
        if has_reply_header(block):
            parsed = {name: value for name, value in (parsed or {}).items() if name not in STATUS_HEADERS}
            parsed.setdefault(REPLY_HEADER, "")
        return parsed

    async def flush(self, timeout: int = FLUSH_SECONDS) -> None:
        """Flush pending bytes first: the base class sends its ping ahead of them, so the pong would not cover them."""
        if self.is_connected and self._transport is not None and self._pending:
            self._transport.writelines(self._pending[:])
            self._pending = []
            self._pending_data_size = 0
        await super().flush(timeout)

    async def request(
        self,
        subject: str,
        payload: bytes = b"",
        timeout: float = 0.5,
        old_style: bool = False,
        headers: dict[str, Any] | None = None,
    ) -> Msg:
        """Send a request again where nobody responds and we have our own inbox.

        While the server reloads its configuration, the route from a worker's account to the main account is cut for an
        instant.
        """
        for pause in RETRY_PAUSES if self._inbox_prefix.count(b".") else ():
            try:
                return await super().request(subject, payload, timeout, old_style, headers)
            except NoRespondersError:
                await asyncio.sleep(pause)
        return await super().request(subject, payload, timeout, old_style, headers)

    def _build_message(
        self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: dict[str, str] | None
    ) -> Msg:
        """Build a message with a publishable subject: its dead letter's subject contains it."""
        return self.msg_class(
            subject=_to_readable(subject), reply=_to_readable(reply), data=data, headers=headers, _client=self, _sid=sid
        )


def _to_readable(name: bytes) -> str:
    return name.decode(errors="replace").translate(_SPACES)[:SUBJECT_CHARS]


def _patch_parser() -> None:
    """Replace the parser's module-level patterns: it has no other hook."""
    parser.MSG_RE = re.compile(rb"\AMSG" + _HEAD + rb"(\d+)\r\n")
    parser.HMSG_RE = re.compile(rb"\AHMSG" + _HEAD + rb"(\d+)[ \t]+(\d+)\r\n")


_patch_parser()
