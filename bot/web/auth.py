"""Who may come in: Host and Origin rules, one-time tokens, and the signed cookie of a visitor.

Knows names of hosts, header texts and one secret key; knows nothing of jobs, pages or aiohttp.
"""

from __future__ import annotations

import hmac
import ipaddress
import os
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from bot.refused import Refused

COOKIE = "darkroom"
KEY_BYTES = 32
PROXIED = "This room is behind a proxy: set PUBLIC_URL, and come in by the one-time address."
OPEN_INVITATIONS = 20  # older ones lapse
FORMS = frozenset({"application/x-www-form-urlencoded", "multipart/form-data", "text/plain"})
OURS = ("X-Darkroom", "Idempotency-Key")  # headers that another site's form cannot have
FORWARDED = ("Forwarded", "X-Forwarded-For", "X-Real-IP")  # what a proxy adds
SAFE = frozenset({"GET", "HEAD", "OPTIONS"})


@dataclass(frozen=True)
class Visitor:
    """Someone at the page. An owner runs this room and may cancel any job; a guest only their own."""

    id: str
    owner: bool


def name_of(host: str) -> str:
    """The bare lower-case name of a Host header or an authority, without its port; empty if it isn't one."""
    try:
        parts = urlsplit(f"//{host}")
        name, _ = parts.hostname or "", parts.port
    except ValueError:
        return ""
    return "" if parts.path or parts.query or parts.fragment or "@" in host else name


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None


def is_loopback(name: str) -> bool:
    """Whether this name can only mean this computer."""
    address = _address(name)
    return name == "localhost" or (address is not None and address.is_loopback)


@dataclass(frozen=True)
class Door:
    """Which hosts and origins this room answers to: what it is bound to, its PUBLIC_URL and its allowed hosts."""

    bound: str
    public: str = ""
    allowed: frozenset[str] = frozenset()

    @classmethod
    def of(cls, bound: str, public_url: str, allowed: Iterable[str]) -> Door:
        """`public_url` as `https://pictures.example`, `allowed` as host names with or without a port."""
        names = frozenset(filter(None, (name_of(host.strip()) for host in allowed)))
        return cls(bound.strip("[]").lower(), urlsplit(public_url).netloc.lower(), names)

    @property
    def open(self) -> bool:
        """True where only this computer can come: no token is asked for then."""
        others = [name for name in (name_of(self.public), *self.allowed) if name and not is_loopback(name)]
        return is_loopback(self.bound) and not others

    def knows(self, host: str) -> bool:
        """Whether a Host header names this room. An address is safe from DNS rebinding, which needs a name."""
        name = name_of(host)
        if is_loopback(name) or name in self.allowed or (name and name == name_of(self.public)):
            return True
        return not is_loopback(self.bound) and _address(name) is not None

    def is_ours(self, origin: str, host: str) -> bool:
        """Whether a page of this origin is one of ours: the host that was asked, or the public address."""
        parts = urlsplit(origin)
        return parts.scheme in {"http", "https"} and parts.netloc.lower() in {host.lower(), self.public} - {""}

    def check(self, method: str, headers: Mapping[str, str]) -> None:
        """Refuses a strange Host or a foreign Origin (403), and what a form of another site could send (400).

        A room for this computer only takes everybody for its owner: so it takes nobody from a proxy.
        """
        if self.open and any(name in headers for name in FORWARDED):
            raise Refused(PROXIED, 403)
        host = headers.get("Host", "")
        if not self.knows(host):
            raise Refused(f"This room doesn't answer to the name {name_of(host)!r}; ALLOWED_HOSTS can add it.", 403)
        origin = headers.get("Origin")
        if origin is not None and not self.is_ours(origin, host):
            raise Refused("Another site's page may not use this room.", 403)
        foreign = headers.get("Sec-Fetch-Site", "none") not in {"none", "same-origin"}
        if foreign and origin is None and not _is_visit(method, headers):
            raise Refused("Another site's page may not use this room.", 403)
        if method not in SAFE and _is_form(headers) and not _brings(headers):
            raise Refused("Send JSON (Content-Type: application/json); a form needs a header X-Darkroom.", 400)


def _is_visit(method: str, headers: Mapping[str, str]) -> bool:
    """A link that someone followed, which may come from anywhere."""
    return method in SAFE and headers.get("Sec-Fetch-Mode") == "navigate"


def _is_form(headers: Mapping[str, str]) -> bool:
    """Whether this could be a form, which any site may send anywhere unasked ("simple" in the Fetch standard)."""
    return _kind(headers) in FORMS


def _brings(headers: Mapping[str, str]) -> bool:
    """Whether it is a form with files that no other site's page sent unasked: only scripts can add these headers, and
    those of another site must ask before, which nobody here allows.
    """
    ours = any(name in headers for name in OURS) or headers.get("Authorization", "").startswith("Bearer ")
    return ours and _kind(headers) == "multipart/form-data"


def _kind(headers: Mapping[str, str]) -> str:
    return headers.get("Content-Type", "").partition(";")[0].strip().lower()


def _bytes(text: str) -> bytes:
    """A header as it came: aiohttp keeps bytes that are not UTF-8 as surrogates."""
    return text.encode("utf-8", "surrogateescape")


def key_of(folder: Path) -> bytes:
    """The room's secret, 32 bytes in `web.key` (mode 600), made at the first start; cookies outlive restarts by it.

    An empty file says nothing, and is written anew. Refuses any other that isn't a key.
    """
    path = folder / "web.key"
    key = path.read_bytes() if path.exists() else b""
    if key and len(key) != KEY_BYTES:
        raise Refused(f"{path.name} in the data folder is damaged: remove it, and start again.", 400)
    return key or _new_key(path)


def _new_key(path: Path) -> bytes:
    """Written beside and moved into place: a crash leaves the whole key, or none."""
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(secrets.token_bytes(KEY_BYTES))
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    return path.read_bytes()


def terminal_key(folder: Path) -> str:
    """What `darkroom imagine` sends as `Authorization: Bearer …`: only who can read the data folder has it."""
    return hmac.new(key_of(folder), b"terminal", "sha256").hexdigest()


class Gate:
    """One-time invitations and signed cookies; the invitations live in memory, the cookies by the key alone."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._invitations: dict[str, bool] = {}

    def invite(self, *, owner: bool = False) -> str:
        """A token that lets one visitor in, once. Too many guests' make their oldest lapse, never an owner's."""
        guests = [token for token, owners in self._invitations.items() if not owners]
        if not owner and len(guests) >= OPEN_INVITATIONS:
            del self._invitations[guests[0]]
        token = secrets.token_urlsafe(24)
        self._invitations[token] = owner
        return token

    def gains(self, token: str, visitor: Visitor | None) -> bool:
        """Whether the token would make this visitor more than they are: a stranger a guest, or anyone an owner."""
        owner = self._invitations.get(token)
        return owner is not None and (visitor is None or (owner and not visitor.owner))

    def redeem(self, token: str) -> Visitor | None:
        """The visitor that the token stands for; from then on it stands for nobody."""
        owner = self._invitations.pop(token, None)
        return None if owner is None else self.greet(owner=owner)

    def greet(self, *, owner: bool) -> Visitor:
        """A visitor who was never here before."""
        return Visitor(secrets.token_hex(8), owner)

    def seal(self, visitor: Visitor) -> str:
        """The visitor as a cookie that nobody else can write."""
        text = f"{'owner' if visitor.owner else 'guest'}.{visitor.id}"
        return f"{text}.{self._sign(text)}"

    def unseal(self, cookie: str) -> Visitor | None:
        """The visitor of a cookie, None if this room didn't write it."""
        text, _, signature = cookie.rpartition(".")
        if not hmac.compare_digest(_bytes(signature), self._sign(text).encode()):
            return None
        role, _, name = text.partition(".")
        return Visitor(name, role == "owner")

    def is_terminal(self, authorization: str) -> bool:
        """Whether the header carries the key of `terminal_key`."""
        expected = "Bearer " + hmac.new(self._key, b"terminal", "sha256").hexdigest()
        return hmac.compare_digest(_bytes(authorization), expected.encode())

    def _sign(self, text: str) -> str:
        return hmac.new(self._key, b"visitor:" + _bytes(text), "sha256").hexdigest()
