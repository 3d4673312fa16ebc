"""Decisions about webhooks: which addresses may be called, which transitions are events, when to try again. Pure.

Events, headers and signatures follow Standard Webhooks (https://www.standardwebhooks.com).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, get_args

from yarl import URL

from bot.domain.errors import UserError
from bot.domain.job_states import JobState

WebhookEvent = Literal["job.queued", "job.started", "job.preview", "job.finished", "job.failed", "job.cancelled"]
EVENTS: tuple[WebhookEvent, ...] = get_args(WebhookEvent)
DEFAULT_EVENTS: tuple[WebhookEvent, ...] = ("job.started", "job.finished", "job.failed", "job.cancelled")
STATE_EVENTS: Mapping[JobState, WebhookEvent] = MappingProxyType(
    {
        "queued": "job.queued",
        "running": "job.started",
        "finished": "job.finished",
        "failed": "job.failed",
        "cancelled": "job.cancelled",
    }
)
RETRY_SECONDS = (5.0, 60.0, 300.0, 1800.0, 7200.0, 18_000.0, 36_000.0, 36_000.0)  # after the first try, then each other
JITTER = 0.2  # of a pause: endpoints that came back are not called by all events at once
MAX_RETRY_AFTER = 86_400.0  # an endpoint may ask for a longer pause, up to this
MAX_URL_LENGTH = 500
GONE = 410  # the endpoint wants no more

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_IPV4_COMPATIBLE = ipaddress.IPv6Network("::/96")


@dataclass(frozen=True)
class PrivateHosts:
    """What the operator lists: names and networks that webhooks may reach although they are private, or without TLS."""

    names: frozenset[str] = frozenset()
    networks: tuple[_Network, ...] = ()

    @classmethod
    def parse(cls, entries: Iterable[str]) -> PrivateHosts:
        """Build it of names, addresses and networks, as `hooks.lan`, `10.0.0.7` and `fd00::/8`."""
        names = set[str]()
        networks = list[_Network]()
        for entry in entries:
            try:
                networks.append(ipaddress.ip_network(entry.strip(), strict=False))
            except ValueError:
                names.add(entry.strip().lower().rstrip("."))
        return cls(frozenset(names - {""}), tuple(networks))

    def has_name(self, host: str) -> bool:
        """Return whether the operator lists this host by its name."""
        return host.lower().rstrip(".") in self.names

    def has_address(self, address: _Address) -> bool:
        """Return whether the operator lists a network with this address."""
        return any(address in network for network in self.networks)


def check_url(text: str, private_hosts: PrivateHosts) -> str:
    """Return the address of a webhook. Raises `UserError` (422) if no event may be sent there, whatever its name is."""
    if not 0 < len(text) <= MAX_URL_LENGTH or not text.isascii() or not text.isprintable() or "\\" in text:
        raise UserError(f"A webhook's address has 1 to {MAX_URL_LENGTH} plain characters.")
    try:
        url = URL(text)
        host = url.host or ""
        _ = url.port
    except ValueError:
        url = URL()
        host = ""
    if url.scheme not in ("http", "https") or not host or url.user is not None or url.password is not None:
        raise UserError("A webhook's address is like https://hooks.example/darkroom, without a user or a password.")
    address = parse_address(host)
    is_listed = private_hosts.has_name(host) or (address is not None and private_hosts.has_address(address))
    if url.scheme == "http" and not is_listed:
        raise UserError(f"{host} is not in DARKROOM_WEBHOOKS_HOSTS: use https, or have the operator list it.")
    if address is not None:
        check_addresses(host, [address], private_hosts)
    return text


def parse_address(host: str) -> _Address | None:
    """Return the address that a host is, or None if it is a name."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def check_addresses(host: str, addresses: Iterable[_Address], private_hosts: PrivateHosts) -> None:
    """Check everything that a host resolves to. Raises `UserError` (422) for an address that is not public.

    The sentence has no address: whoever adds webhooks would read in it what the operator's own names resolve to.
    """
    for address in addresses:
        if not (is_public(address) or private_hosts.has_name(host) or private_hosts.has_address(address)):
            raise unreachable_error(host)


def unreachable_error(host: str) -> UserError:
    """Return what to say of a host with no address, or one that is not public: nobody learns which it is."""
    return UserError(f"{host} is not public, or does not exist: the operator may list it for webhooks.")


def is_public(address: _Address) -> bool:
    """Return whether an address is of the public internet, and so is an IPv4 address that is wrapped in it."""
    wrapped = _unwrap(address)
    if wrapped is not None:
        return is_public(wrapped)
    return address.is_global and not (address.is_multicast or address.is_reserved or address.is_unspecified)


def _unwrap(address: _Address) -> ipaddress.IPv4Address | None:
    """Return the IPv4 address that packets to this IPv6 address may reach: mapped, 6to4, Teredo, NAT64."""
    if isinstance(address, ipaddress.IPv4Address):
        return None
    if address in _NAT64 or address in _IPV4_COMPATIBLE:
        return ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
    return address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else None)


def parse_events(names: Iterable[str]) -> tuple[WebhookEvent, ...]:
    """Return the events of these names, with or without `job.`. Raises `UserError` (422)."""
    wanted = {name if name.startswith("job.") else f"job.{name}" for name in names}
    if unknown := sorted(wanted - set(EVENTS)):
        known = ", ".join(event.removeprefix("job.") for event in EVENTS)
        raise UserError(f"There is no event {unknown[0].removeprefix('job.')[:40]!r}: there are {known}.")
    if not wanted:
        raise UserError("A webhook needs an event.")
    return tuple(event for event in EVENTS if event in wanted)


def is_accepted(status: int) -> bool:
    """Return whether an endpoint's status says that it has the event."""
    return 200 <= status < 300


def retry_delay(attempts: int, jitter: float, retry_after: float = 0.0) -> float | None:
    """Return after how many seconds to try again after so many attempts; None: never again, the event is a dead letter.

    `jitter`: from 0 to 1. `retry_after`: seconds that the endpoint asked for.
    """
    if attempts > len(RETRY_SECONDS):
        return None
    pause = RETRY_SECONDS[attempts - 1] * (1 - JITTER / 2 + JITTER * jitter)
    return max(pause, min(retry_after, MAX_RETRY_AFTER))
