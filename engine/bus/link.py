"""One connection to the broker that comes back by itself, and the one error that says it is away.

Knows connecting and reconnecting; nothing of what is sent.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import nats
import nats.errors
import nats.js.errors
from nats.aio.client import Client

log = logging.getLogger(__name__)

PENDING_BYTES = 32 * 1024 * 1024  # what may wait in memory while the broker is away; the largest message is 8 MB
RECONNECT_SECONDS = 0.25
GLANCE_SECONDS = 0.5


class Unreachable(ConnectionError):
    """The broker did not answer in time, or refused; the text says what was tried."""


class Ended(RuntimeError):
    """The connection is over for good, though we did not close it: the process must end and be started anew."""


@contextmanager
def reaching(what: str) -> Iterator[None]:
    """Every failure of the client library inside becomes `Unreachable("what: why")`."""
    try:
        yield
    except (nats.errors.Error, TimeoutError, OSError) as error:
        reason = str(error) or type(error).__name__
        raise Unreachable(f"The broker could not be reached to {what}: {reason}.") from error


async def connect(url: str, token: str, name: str, patience: float, on_return: Callable[[], Awaitable[None]]) -> Client:
    """A client that reconnects after every loss and then calls `on_return`; see `stays` for the one exception.

    Raises `Unreachable` when the first connection takes longer than `patience` seconds, or the broker refuses us.
    """
    client = Client()
    last: list[Exception] = []

    async def on_error(error: Exception) -> None:
        if not any("Authorization" in str(known) for known in last):  # what follows a refusal is only its echo
            last[:] = [error]
        log.log(logging.WARNING if client.is_connected else logging.DEBUG, "broker: %s", error)

    async def on_loss() -> None:
        if not client.is_closed:  # we left by ourselves
            log.warning("broker: connection lost, reconnecting")

    async def on_reconnect() -> None:
        log.info("broker: connected again")
        await on_return()

    try:
        async with asyncio.timeout(patience):
            await client.connect(
                servers=[url], name=name, token=token or None, connect_timeout=5, max_reconnect_attempts=-1,
                reconnect_time_wait=RECONNECT_SECONDS,  # pyright: ignore[reportArgumentType] - a sleep takes floats
                error_cb=on_error, disconnected_cb=on_loss, reconnected_cb=on_reconnect,
                pending_size=PENDING_BYTES, ping_interval=10, max_outstanding_pings=3,
            )  # fmt: skip
    except (nats.errors.Error, TimeoutError, OSError) as error:
        reason = last[0] if last else error
        raise Unreachable(f"No broker answers at {url}: {str(reason) or type(reason).__name__}.") from error
    return client


async def stays(client: Client, ours: Callable[[], bool]) -> None:
    """Returns when the client is closed and it was `ours` to close; raises `Ended` when it closed by itself.

    It does so after an error that the server sends (a message beyond its limits, a token that it no longer takes), and
    never reconnects. From then on every call fails as in an outage, yet one without an end; so whoever lives by the
    connection runs this beside its work. We look instead of being called: the client's `closed_cb` stays silent when
    the error comes during a reconnection.
    """
    while not client.is_closed:
        await asyncio.sleep(GLANCE_SECONDS)
    if not ours():
        reason = str(client.last_error or "no reason given")
        log.critical("broker: the connection has ended for good: %s", reason)
        raise Ended(f"The connection to the broker has ended for good: {reason}.")
