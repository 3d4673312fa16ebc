"""Sends signed messages to webhooks, and to no address that is not allowed.

Every address that a name resolves to is checked, and the connection goes to a checked one: a name that resolves
differently a moment later gains nothing. Redirects are refused, times are bounded, and of an answer only the head is
read.
"""

from __future__ import annotations

import logging
import socket
from dataclasses import dataclass
from datetime import UTC, datetime

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from standardwebhooks import Webhook as Signer

from bot.domain.errors import UserError
from bot.features.webhooks.rules import PrivateHosts, check_addresses, check_url, parse_address, unreachable_error
from bot.features.webhooks.store import Webhook

log = logging.getLogger(__name__)

TIMEOUT = aiohttp.ClientTimeout(total=15.0, connect=10.0)
MAX_CONNECTIONS = 32
MAX_HEADER_BYTES = 8 * 1024  # of a line of an answer


@dataclass(frozen=True)
class Answer:
    """What came of one try. `status`: 0 if there was no answer, which `error` explains. `retry_after`: seconds."""

    status: int
    error: str = ""
    retry_after: float = 0.0


class CheckedResolver(AbstractResolver):
    """Resolves names by `resolver`. Raises `UserError` if there is no address, or any is not allowed."""

    def __init__(self, private_hosts: PrivateHosts, resolver: AbstractResolver) -> None:
        self._private_hosts = private_hosts
        self._resolver = resolver

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Return the addresses of a name, each of them checked. The log says what it is if it is refused."""
        try:
            results = await self._resolver.resolve(host, port, family)
        except OSError as error:
            log.info("webhooks: %s does not resolve: %s", host, error)
            raise unreachable_error(host) from error
        addresses = [parse_address(result["host"]) for result in results]
        try:
            check_addresses(host, [address for address in addresses if address is not None], self._private_hosts)
        except UserError:
            log.warning("webhooks: %s is refused: it is %s", host, ", ".join(map(str, addresses)))
            raise
        return [result for result, address in zip(results, addresses, strict=True) if address is not None]

    async def close(self) -> None:
        """Close the resolver behind it."""
        await self._resolver.close()


class WebhookClient:
    """Posts to webhooks; `close` it. `resolver`: of names; None: the system's."""

    def __init__(self, private_hosts: PrivateHosts, resolver: AbstractResolver | None = None) -> None:
        self.private_hosts = private_hosts
        connector = aiohttp.TCPConnector(
            resolver=CheckedResolver(private_hosts, resolver or aiohttp.ThreadedResolver()),
            use_dns_cache=False,
            force_close=True,
            limit=MAX_CONNECTIONS,
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=TIMEOUT,
            max_line_size=MAX_HEADER_BYTES,
            max_field_size=MAX_HEADER_BYTES,
        )

    async def close(self) -> None:
        """Close every connection."""
        await self._session.close()

    async def post(self, webhook: Webhook, message: str, body: bytes, now: float) -> Answer:
        """Send a body as the message of this id, signed now; return what came of it."""
        headers = sign_message(webhook.secret, message, body, now) | {
            "Content-Type": "application/json",
            "User-Agent": "darkroom",
            "Accept-Encoding": "identity",
        }
        try:
            url = check_url(webhook.url, self.private_hosts)
            async with self._session.post(url, data=body, headers=headers, allow_redirects=False) as response:
                return Answer(response.status, f"It answered {response.status}.", _read_retry_after(response))
        except UserError as error:
            return Answer(0, error.sentence)
        except TimeoutError:
            return Answer(0, f"It did not answer within {TIMEOUT.total:.0f} s.")
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return Answer(0, f"No connection: {type(error).__name__}.")


def sign_message(secret: str, message: str, body: bytes, now: float) -> dict[str, str]:
    """Return the headers that prove where a message comes from, and when it was sent."""
    signature = Signer(secret).sign(message, datetime.fromtimestamp(int(now), UTC), body.decode())
    return {"webhook-id": message, "webhook-timestamp": str(int(now)), "webhook-signature": signature}


def _read_retry_after(response: aiohttp.ClientResponse) -> float:
    text = response.headers.get("Retry-After", "")
    return float(text) if text.isascii() and text.isdecimal() and len(text) <= 6 else 0.0
