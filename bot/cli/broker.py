"""Finds the broker: the one that the settings name, or an embedded one, whose listen address it checks."""

from __future__ import annotations

import re
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bot.refused import Refused
from engine.bus import Bus, Unreachable
from engine.bus.keys import FILE

if TYPE_CHECKING:
    from bot.config import Settings
    from engine.bus.server import Listening

FOLDER = "nats"  # in the data folder
ADDRESS = re.compile(r"(?:\[(?P<six>[0-9A-Fa-f:.]+)\]|(?P<host>[^:\s]+)):(?P<port>\d{1,5})")


@dataclass(frozen=True)
class Way:
    """How to reach a broker. `authority`: its certificate authority, where that is not one of the system's."""

    url: str
    token: str
    authority: Path | None = None

    def environment(self) -> dict[str, str]:
        """Return the environment variables for a worker that we start."""
        authority = {"DARKROOM_NATS_CA": str(self.authority)} if self.authority else {}
        return {"DARKROOM_NATS_TOKEN": self.token} | authority


async def find(parts: AsyncExitStack, settings: Settings) -> Way:
    """Return the configured broker, or start an embedded one that `parts` stops. Raise `Refused`."""
    if settings.nats:
        token = settings.nats_token.get_secret_value() if settings.nats_token else ""
        return Way(str(settings.nats), token, settings.nats_ca)
    from engine.bus.broker import Broker, BrokerError

    try:
        broker = Broker(settings.data / FOLDER, at=listening(settings), workers=settings.data / FILE)
        await parts.enter_async_context(broker)
    except BrokerError as error:
        raise Refused(str(error)) from error
    return Way(broker.url, broker.token, broker.at.certificate)


async def join(parts: AsyncExitStack, way: Way) -> Bus:
    """Connect and declare the streams; `parts` closes the connection. Raise `Refused`."""
    try:
        bus = await Bus.connect(way.url, way.token, authority=way.authority)
        parts.push_async_callback(bus.close)
        await bus.declare()
    except Unreachable as error:
        raise Refused(str(error)) from error
    return bus


def listening(settings: Settings) -> Listening:
    """Return where the embedded broker listens: loopback unless the settings say otherwise. Raise `Refused`.

    Without a certificate, jobs and pictures cross the network unencrypted. So it then needs an address of this machine
    or of a private network, and never listens on all addresses.
    """
    from engine.bus.server import Listening

    certificate = _certificate(settings)
    if not settings.nats_listen:
        return Listening(certificate=certificate, certificate_key=settings.nats_cert_key)
    found = ADDRESS.fullmatch(settings.nats_listen)
    if found is None or not 0 < int(found["port"]) < 65536:
        raise Refused("DARKROOM_NATS_LISTEN is not valid: an address and a port such as 10.0.0.5:4222 are needed.", 400)
    at = Listening(found["six"] or found["host"], int(found["port"]), certificate, settings.nats_cert_key)
    if certificate is None and not at.private:
        raise Refused(
            f"On {at.host} others could read the pictures on their way: give DARKROOM_NATS_LISTEN an address of a "
            "private network such as 10.0.0.5:4222, or name a certificate with DARKROOM_NATS_CERT and "
            "DARKROOM_NATS_CERT_KEY.", 400,
        )  # fmt: skip
    return at


def _certificate(settings: Settings) -> Path | None:
    if (settings.nats_cert is None) != (settings.nats_cert_key is None):
        raise Refused("DARKROOM_NATS_CERT and DARKROOM_NATS_CERT_KEY go together: name both or neither.", 400)
    for file in (settings.nats_cert, settings.nats_cert_key):
        if file is not None and not file.is_file():
            raise Refused(f"The broker's certificate cannot be used: there is no file {file}.", 400)
    return settings.nats_cert
