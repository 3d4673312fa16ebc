"""The leader lease: one bot holds it; a standby gets it when the holder releases it or stops renewing.

It is a claim in a separate bucket, with a shorter life than a job's.
"""

from __future__ import annotations

from engine.bus.claims import Claim, ClaimHolder, Claims
from engine.bus.link import translate_errors

LEASE_KEY = "bot"


class LeaderLease:
    """Every method raises `Unreachable` while the broker is away."""

    def __init__(self, claims: Claims, seconds: float) -> None:
        self._claims, self.seconds = claims, seconds

    async def acquire(self, name: str) -> Claim | None:
        """Acquire the lease; None while another bot holds it."""
        with translate_errors("acquire the leader lease"):
            return await self._claims.acquire(LEASE_KEY, name)

    async def renew(self, claim: Claim) -> bool:
        """Extend the lease by `seconds`. False: it is lost."""
        with translate_errors("renew the leader lease"):
            return await self._claims.renew(claim)

    async def release(self, claim: Claim) -> None:
        """Release the lease, so that a standby need not wait until it expires."""
        with translate_errors("release the leader lease"):
            await self._claims.release(claim)

    async def get_holder(self) -> ClaimHolder | None:
        """Return the holder; None where there is none."""
        with translate_errors("look up the leader"):
            return await self._claims.get_holder(LEASE_KEY)
