"""The lease of which only one bot has it: who stands by asks for it, and gets it when its holder ends or falls silent.

A claim in a bucket of its own, which lives for less time than a job's. Knows the bucket; nothing of what a leader does.
"""

from __future__ import annotations

from engine.bus.claims import Claim, Claims, Holder
from engine.bus.link import reaching

KEY = "bot"


class Leases:
    """Every method raises `Unreachable` while the broker is away."""

    def __init__(self, claims: Claims, seconds: float) -> None:
        self._claims, self.seconds = claims, seconds

    async def take(self, name: str) -> Claim | None:
        """The lease; None while somebody has it."""
        with reaching("take the lead"):
            return await self._claims.take(KEY, name)

    async def renew(self, claim: Claim) -> bool:
        """For `seconds` more. False: it is lost."""
        with reaching("keep the lead"):
            return await self._claims.renew(claim)

    async def release(self, claim: Claim) -> None:
        """Whoever stands by need not wait until it runs out."""
        with reaching("hand over the lead"):
            await self._claims.release(claim)

    async def holder(self) -> Holder | None:
        """Who has it; None where nobody has."""
        with reaching("ask who leads"):
            return await self._claims.holder(KEY)
