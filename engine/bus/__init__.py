"""The bus: all communication between the bot and the workers over NATS.

`Bus` joins the bot's and the worker's client. Every wait is bounded. While the broker is away, calls raise
`BrokerUnreachable` and the connection recovers by itself. When it cannot recover, `wait_closed` raises
`ConnectionEnded`; a long-lived process awaits that.
"""

from __future__ import annotations

from engine.bus.blobs import BlobMissing
from engine.bus.bot_client import BotClient, NoWorkerAnswers
from engine.bus.claims import Claim, ClaimHolder, StaleEpoch
from engine.bus.connection import BrokerUnreachable, ConnectionEnded
from engine.bus.deliveries import BusMessage
from engine.bus.subjects import BusLimits
from engine.bus.worker_client import WorkerClient

__all__ = [
    "BlobMissing",
    "BrokerUnreachable",
    "Bus",
    "BusLimits",
    "BusMessage",
    "Claim",
    "ClaimHolder",
    "ConnectionEnded",
    "NoWorkerAnswers",
    "StaleEpoch",
]


class Bus(BotClient, WorkerClient):
    """One connection for a whole process: `bus = await Bus.connect(url, token)`, then `await bus.declare()`."""
