"""Discord's rate limits: per route and channel or token, globally per second, invalid requests per ten minutes.

Pure; the clock is an argument of every call. A bucket's window begins with its first request and ends as a whole, as
the headers say. Sources: Discord's documentation "Rate Limits", and headers of its real answers.
"""

from __future__ import annotations

import hashlib
import math
import re
from dataclasses import dataclass, field

# requests a second of one bot, interactions excepted
GLOBAL = 50
SECOND = 1.0
# answers of 401, 403 and 429 after which an address is blocked
INVALID = 10_000
TEN_MINUTES = 600.0
BLOCK_SECONDS = 3600.0  # seconds


@dataclass(frozen=True)
class Limit:
    """`count` requests in `seconds` for each value of the pattern's groups."""

    name: str
    methods: tuple[str, ...]
    path: re.Pattern[str]
    count: int
    seconds: float


def _limit(name: str, methods: str, path: str, count: int, seconds: float) -> Limit:
    pattern = re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", path).replace("*", "[^/]+")
    return Limit(name, tuple(methods.split()), re.compile(pattern + "$"), count, seconds)


# A name in braces is part of the bucket's key, a star is not.
LIMITS = (
    _limit("post", "POST", "/channels/{channel}/messages", 5, 5.0),
    _limit("edit", "PATCH", "/channels/{channel}/messages/*", 5, 5.0),
    _limit("delete", "DELETE", "/channels/{channel}/messages/*", 5, 1.0),
    _limit("read", "GET", "/channels/{channel}/messages/*", 5, 5.0),
    _limit("history", "GET", "/channels/{channel}/messages", 5, 5.0),
    _limit("react", "PUT DELETE", "/channels/{channel}/messages/*/reactions/.+", 1, 0.25),
    _limit("threads", "POST", "/channels/{channel}/threads", 5, 5.0),
    _limit("threads-of", "POST", "/channels/{channel}/messages/*/threads", 5, 5.0),
    _limit("token-edit", "PATCH", "/webhooks/{application}/{token}/messages/*", 5, 5.0),
    _limit("token-read", "GET", "/webhooks/{application}/{token}/messages/*", 5, 5.0),
    _limit("token-delete", "DELETE", "/webhooks/{application}/{token}/messages/*", 5, 5.0),
    _limit("token-post", "POST", "/webhooks/{application}/{token}", 5, 5.0),
    _limit("commands", "PUT", "/applications/{application}/commands", 5, 20.0),
    _limit("guild-commands", "PUT", "/applications/{application}/guilds/{guild}/commands", 5, 20.0),
    _limit("direct", "POST", "/users/@me/channels", 10, 10.0),
)


@dataclass
class Window:
    """One bucket in use."""

    ends_at: float = -math.inf
    used_count: int = 0


@dataclass(frozen=True)
class Verdict:
    """`headers` go with every answer. With `retry_after` the answer is 429."""

    headers: dict[str, str] = field(default_factory=dict)
    retry_after: float | None = None
    is_global: bool = False  # the global limit
    is_blocked: bool = False  # too many invalid requests: the network in front of Discord blocks the address


class Rates:
    """All counters of one bot."""

    def __init__(self, limits: tuple[Limit, ...] = LIMITS) -> None:
        self.limits = limits
        self.refused_count = 0  # answers of 429
        self._windows: dict[tuple[str, ...], Window] = {}
        self._global_window = Window()
        self._invalid_window = Window()
        self._blocked_until = -math.inf

    def count_request(self, method: str, path: str, now: float, wall: float) -> Verdict:
        """Count one request. `wall` is the time of day for the Reset header."""
        if now < self._blocked_until:
            return Verdict(retry_after=self._blocked_until - now, is_blocked=True)
        if not path.startswith(("/webhooks/", "/interactions/")):
            wait = spend_from(self._global_window, GLOBAL, SECOND, now)
            if wait is not None:
                return self._refuse_request(
                    {"X-RateLimit-Global": "true", "X-RateLimit-Scope": "global"}, wait, is_global=True
                )
        for limit in self.limits:
            if method in limit.methods and (match := limit.path.match(path)):
                return self._spend_limit(limit, match.groups(), now, wall)
        return Verdict()

    def _spend_limit(self, limit: Limit, key: tuple[str, ...], now: float, wall: float) -> Verdict:
        window = self._windows.setdefault((limit.name, *key), Window())
        wait = spend_from(window, limit.count, limit.seconds, now)
        remaining = math.ceil(1000 * (window.ends_at - now)) / 1000  # rounded up: never too early
        headers = {
            "X-RateLimit-Limit": str(limit.count),
            "X-RateLimit-Remaining": str(limit.count - window.used_count),
            "X-RateLimit-Reset": f"{wall + remaining:.3f}",
            "X-RateLimit-Reset-After": f"{remaining:.3f}",
            "X-RateLimit-Bucket": hashlib.sha256(limit.name.encode()).hexdigest()[:32],
        }
        self._drop_old_windows(now)
        return (
            Verdict(headers) if wait is None else self._refuse_request({**headers, "X-RateLimit-Scope": "user"}, wait)
        )

    def _refuse_request(self, headers: dict[str, str], wait: float, *, is_global: bool = False) -> Verdict:
        self.refused_count += 1
        return Verdict({**headers, "Retry-After": str(math.ceil(wait))}, wait, is_global)

    def count_answer(self, status: int, now: float) -> None:
        """Count an answer: too many invalid requests block the whole address."""
        if status in (401, 403, 429) and spend_from(self._invalid_window, INVALID - 1, TEN_MINUTES, now) is not None:
            self._blocked_until = now + BLOCK_SECONDS

    @property
    def invalid_count(self) -> int:
        """Invalid requests in the current window."""
        return self._invalid_window.used_count

    def _drop_old_windows(self, now: float) -> None:
        if len(self._windows) > 4096:
            self._windows = {name: one for name, one in self._windows.items() if one.ends_at > now}


def spend_from(window: Window, count: int, seconds: float, now: float) -> float | None:
    """None, or the seconds until the next try is allowed."""
    if now >= window.ends_at:
        window.ends_at = now + seconds
        window.used_count = 0
    if window.used_count >= count:
        return window.ends_at - now
    window.used_count += 1
    return None
