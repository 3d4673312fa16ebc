"""Access rules of the chatroom: Host and Origin checks, signs of a proxy, one-time tokens, the terminal's key.

Imports neither aiohttp nor anything about jobs. `bot.services.sessions` keeps who has entered.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import ipaddress
import logging
import os
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from bot.domain.dto import KeyScope
from bot.domain.errors import UserError

log = logging.getLogger(__name__)

COOKIE_NAME = "darkroom"
KEY_BYTES = 32
PROXY_REFUSED = "The chatroom is behind a proxy: set DARKROOM_PUBLIC_URL and open the one-time address."
MAX_INVITATIONS = 20  # with more, the oldest expires
FORM_TYPES = frozenset({"application/x-www-form-urlencoded", "multipart/form-data", "text/plain"})
CUSTOM_HEADERS = ("X-Darkroom", "Idempotency-Key")  # headers that another site's form cannot send
# headers that a proxy adds, in lower case, and how others of them begin
PROXY_HEADERS = frozenset(
    {
        "forwarded",
        "via",
        "x-real-ip",
        "true-client-ip",
        "x-client-ip",
        "x-cluster-client-ip",
        "x-original-host",
        "fastly-client-ip",
        "fly-client-ip",
        "cdn-loop",
        "proxy-connection",
    }
)
PROXY_PREFIXES = ("x-forwarded", "cf-")
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


@dataclass(frozen=True)
class Visitor:
    """A person at the page, or a program. The operator may cancel any job; others only their own.

    `name`: of its API key, and `scopes`: what that key may do; empty and None where no key acts.
    """

    id: str
    is_operator: bool
    name: str = ""
    scopes: frozenset[KeyScope] | None = None


def parse_host_name(host: str) -> str:
    """Return the bare lower-case name of a Host header or an authority, without its port; empty if it is none."""
    try:
        parts = urlsplit(f"//{host}")
        name = parts.hostname or ""
        _ = parts.port
    except ValueError:
        return ""
    return "" if parts.path or parts.query or parts.fragment or "@" in host else name


def _parse_address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None


def is_loopback(name: str) -> bool:
    """Return whether this name can only mean this computer."""
    address = _parse_address(name)
    return name == "localhost" or (address is not None and address.is_loopback)


@dataclass(frozen=True)
class HostPolicy:
    """The hosts and origins that the chatroom answers to: its bound address, DARKROOM_PUBLIC_URL and allowed hosts."""

    bound_host: str
    public_host: str = ""
    allowed_hosts: frozenset[str] = frozenset()

    @classmethod
    def from_settings(cls, bound_host: str, public_url: str, allowed_hosts: Iterable[str]) -> HostPolicy:
        """Build one. `public_url`: as `https://pictures.example`; `allowed_hosts`: host names, perhaps with a port."""
        names = frozenset(filter(None, (parse_host_name(host.strip()) for host in allowed_hosts)))
        return cls(bound_host.strip("[]").lower(), urlsplit(public_url).netloc.lower(), names)

    @property
    def is_local(self) -> bool:
        """True where only this computer can connect: no token is needed then."""
        other_hosts = [
            name for name in (parse_host_name(self.public_host), *self.allowed_hosts) if name and not is_loopback(name)
        ]
        return is_loopback(self.bound_host) and not other_hosts

    def is_known_host(self, host: str) -> bool:
        """Return whether a Host header names this server. An address is safe from DNS rebinding, which needs a name."""
        name = parse_host_name(host)
        if is_loopback(name) or name in self.allowed_hosts or (name and name == parse_host_name(self.public_host)):
            return True
        return not is_loopback(self.bound_host) and _parse_address(name) is not None

    def is_own_origin(self, origin: str, host: str) -> bool:
        """Return whether this origin is the chatroom's own: the requested host, or the public address."""
        parts = urlsplit(origin)
        return parts.scheme in {"http", "https"} and parts.netloc.lower() in {host.lower(), self.public_host} - {""}

    def check_request(self, method: str, headers: Mapping[str, str], *, is_http_1_0: bool = False) -> None:
        """Refuse (403) an unknown Host, a foreign Origin, and anything that another site's form could send.

        A chatroom for this computer alone lets everybody in, so it refuses proxied requests. Browsers and programs of
        today speak HTTP/1.1; a proxy may speak 1.0 and add no header.
        """
        if self.is_local and (is_http_1_0 or _has_proxy_header(headers)):
            raise UserError(PROXY_REFUSED, 403)
        host = headers.get("Host", "")
        if not self.is_known_host(host):
            raise UserError(
                f"The host name {parse_host_name(host)!r} is not allowed here: add it to DARKROOM_ALLOWED_HOSTS.", 403
            )
        origin = headers.get("Origin")
        if origin is not None and not self.is_own_origin(origin, host):
            raise UserError("Requests from other sites are not allowed.", 403)
        is_cross_site = headers.get("Sec-Fetch-Site", "none") not in {"none", "same-origin"}
        if is_cross_site and origin is None and not _is_navigation(method, headers):
            raise UserError("Requests from other sites are not allowed.", 403)
        if method not in SAFE_METHODS and _is_form(headers) and not _is_own_upload(headers):
            raise UserError("Send JSON (Content-Type: application/json); a form needs a header X-Darkroom.", 403)


def _has_proxy_header(headers: Mapping[str, str]) -> bool:
    names = {name.lower() for name in headers}
    return not names.isdisjoint(PROXY_HEADERS) or any(name.startswith(PROXY_PREFIXES) for name in names)


def _is_navigation(method: str, headers: Mapping[str, str]) -> bool:
    """Return whether this is a followed link, which may come from anywhere."""
    return method in SAFE_METHODS and headers.get("Sec-Fetch-Mode") == "navigate"


def _is_form(headers: Mapping[str, str]) -> bool:
    """Return whether this could be a form, which any site may send without asking ("simple" in the Fetch standard)."""
    return _content_type(headers) in FORM_TYPES


def _is_own_upload(headers: Mapping[str, str]) -> bool:
    """Return whether this is a form with files that no other site's page can send.

    Only scripts can add these headers. A script of another site must ask first (CORS preflight), and nothing here
    allows it.
    """
    scheme = headers.get("Authorization", "").partition(" ")[0].lower()  # browsers add `Basic` by themselves
    has_own_header = any(name in headers for name in CUSTOM_HEADERS) or scheme == "bearer"
    return has_own_header and _content_type(headers) == "multipart/form-data"


def _content_type(headers: Mapping[str, str]) -> str:
    return headers.get("Content-Type", "").partition(";")[0].strip().lower()


def parse_credentials(authorization: str) -> str:
    """Return the secret of an Authorization header: after `Bearer`, or the password of `Basic`; empty if it has none.

    With `Basic` any name will do.
    """
    scheme, _, credentials = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return credentials.strip()
    if scheme.lower() != "basic":
        return ""
    try:
        return base64.b64decode(credentials.strip(), validate=True).decode().partition(":")[2]
    except (binascii.Error, ValueError):
        return ""


def _header_bytes(text: str) -> bytes:
    """Return a header's bytes as they came: aiohttp keeps bytes that are not UTF-8 as surrogates."""
    return text.encode("utf-8", "surrogateescape")


def load_or_create_key(folder: Path) -> bytes:
    """Return the chatroom's secret: 32 bytes in `web.key` (mode 600), made at the first start.

    An empty file is written anew. Any other file without a key is refused. A file that others may read is closed to
    them, with a warning.
    """
    path = folder / "web.key"
    key = path.read_bytes() if path.exists() else b""
    if key and len(key) != KEY_BYTES:
        raise UserError(f"{path.name} in the data folder is damaged: remove it and start again.", 400)
    if key and path.stat().st_mode & 0o077:
        log.warning("others could read %s: if they are no friends, remove it and start again for a new key", path)
        path.chmod(0o600)
    return key or _new_key(path)


def _new_key(path: Path) -> bytes:
    """Write a new key to a draft and rename it: a crash leaves the whole key, or none."""
    temp_path = path.with_name(f"{path.name}.{os.getpid()}")
    with os.fdopen(os.open(temp_path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(secrets.token_bytes(KEY_BYTES))
        file.flush()
        os.fsync(file.fileno())
    temp_path.replace(path)
    return path.read_bytes()


def terminal_key(folder: Path) -> str:
    """Return what `darkroom imagine` sends as `Authorization: Bearer …`; it needs access to the data folder."""
    return hmac.new(load_or_create_key(folder), b"terminal", "sha256").hexdigest()


class SessionTokens:
    """One-time invitations, kept in memory, and the terminal's key."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._invitations: dict[str, bool] = {}

    def create_invitation(self, *, for_operator: bool = False) -> str:
        """Return a token that signs in one visitor. Too many guest tokens drop the oldest, never an operator's."""
        guest_tokens = [token for token, is_for_operator in self._invitations.items() if not is_for_operator]
        if not for_operator and len(guest_tokens) >= MAX_INVITATIONS:
            del self._invitations[guest_tokens[0]]
        token = secrets.token_urlsafe(24)
        self._invitations[token] = for_operator
        return token

    def would_upgrade(self, token: str, visitor: Visitor | None) -> bool:
        """Return whether the token would raise this visitor: a stranger to guest, or anyone to operator."""
        for_operator = self._invitations.get(token)
        return for_operator is not None and (visitor is None or (for_operator and not visitor.is_operator))

    def exchange_token(self, token: str, visitor_id: str = "") -> Visitor | None:
        """Use the token up; return its visitor, or None. A visitor who is known already keeps their id."""
        for_operator = self._invitations.pop(token, None)
        return None if for_operator is None else Visitor(visitor_id or new_visitor_id(), for_operator)

    def void_invitations(self) -> None:
        """Make every address that nobody has used worthless."""
        self._invitations.clear()

    def sign(self, text: str) -> str:
        """Return a signature that nobody can guess, for a text such as an address that is valid for a while."""
        return hmac.new(self._key, b"signed:" + text.encode(), "sha256").hexdigest()

    def is_terminal_key(self, authorization: str) -> bool:
        """Return whether the header carries the key of `terminal_key`."""
        scheme, _, key = authorization.partition(" ")
        expected = hmac.new(self._key, b"terminal", "sha256").hexdigest()
        return scheme.lower() == "bearer" and hmac.compare_digest(_header_bytes(key), expected.encode())


def new_visitor_id() -> str:
    return secrets.token_hex(8)
