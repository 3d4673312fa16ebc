"""The bus: all communication between the bot and the workers over NATS.

`Bus` joins the bot's and the worker's client. Every wait is bounded. While the broker is away, calls raise
`Unreachable` and the connection recovers by itself. Only a process that awaits `hold` learns that it will not
(`Ended`).
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
    """One connection for a whole process: `bus = await Bus.connect(url, token)`, then `await bus.declare()`."""
