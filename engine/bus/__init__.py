"""The bus: every way in which the bot and the workers speak to each other, over NATS.

Both halves in one, and the names that its users need. Every wait is bounded; a broker that is away raises `Unreachable`
and comes back by itself; only a process that `hold`s learns when it does not (`Ended`).
"""

from __future__ import annotations

from engine.bus.blobs import NoBlob
from engine.bus.botside import BotSide, NobodyAnswers
from engine.bus.claims import Claim, Fenced, Holder
from engine.bus.deliveries import Delivered
from engine.bus.link import Ended, Unreachable
from engine.bus.streams import Kept
from engine.bus.workerside import WorkerSide

__all__ = ["Bus", "Claim", "Delivered", "Ended", "Fenced", "Holder", "Kept", "NoBlob", "NobodyAnswers", "Unreachable"]


class Bus(BotSide, WorkerSide):
    """`bus = await Bus.connect(url, token)`, then `await bus.declare()`. One connection serves a whole process."""
