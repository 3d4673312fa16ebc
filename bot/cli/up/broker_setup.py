"""Finds the broker: the one that the settings name, or an embedded one, whose listen address it checks."""

from __future__ import annotations

import re
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bot.domain.errors import UserError
from engine.bus import BrokerUnreachable, Bus
from engine.bus.worker_keys import KEY_FILE

if TYPE_CHECKING:
    from bot.app.settings import Settings
    from engine.bus.embedded_broker import ListenAddress

BROKER_FOLDER = "nats"  # in the data folder
ADDRESS_PATTERN = re.compile(r"(?:\[(?P<six>[0-9A-Fa-f:.]+)\]|(?P<host>[^:\s]+)):(?P<port>\d{1,5})")


@dataclass(frozen=True)
class BrokerAddress:
    """How to reach a broker. `ca_file`: its certificate authority, unless the system knows it."""

    url: str
    token: str
    ca_file: Path | None = None

    def worker_environment(self) -> dict[str, str]:
        """Return the environment variables for a worker that we start."""
        ca_variable = {"DARKROOM_NATS_CA": str(self.ca_file)} if self.ca_file else {}
        return {"DARKROOM_NATS_TOKEN": self.token} | ca_variable


async def find_broker(stack: AsyncExitStack, settings: Settings) -> BrokerAddress:
    """Return the configured broker, or start an embedded one that `stack` stops. Raise `UserError`."""
    if settings.nats:
        token = settings.nats_token.get_secret_value() if settings.nats_token else ""
        return BrokerAddress(str(settings.nats), token, settings.nats_ca)
    from engine.bus.embedded_broker import Broker, BrokerError

    try:
        address = parse_listen_address(settings)
        broker = Broker(settings.data / BROKER_FOLDER, listen_address=address, workers=settings.data / KEY_FILE)
        await stack.enter_async_context(broker)
    except BrokerError as error:
        raise UserError(str(error)) from error
    return BrokerAddress(broker.url, broker.token, broker.listen_address.certificate)


async def connect(stack: AsyncExitStack, address: BrokerAddress) -> Bus:
    """Connect and declare the streams; `stack` closes the connection. Raise `UserError`."""
    try:
        bus = await Bus.connect(address.url, address.token, ca_file=address.ca_file)
        stack.push_async_callback(bus.close)
        await bus.declare()
    except BrokerUnreachable as error:
        raise UserError(str(error)) from error
    return bus


def parse_listen_address(settings: Settings) -> ListenAddress:
    """Return where the embedded broker listens: loopback unless the settings say otherwise. Raise `UserError`.

    Without a certificate, jobs and pictures cross the network unencrypted. So it then needs an address of this machine
    or of a private network, and never listens on all addresses.
    """
    from engine.bus.embedded_broker import ListenAddress

    certificate = _check_certificate(settings)
    if not settings.nats_listen:
        return ListenAddress(certificate=certificate, certificate_key=settings.nats_cert_key)
    match = ADDRESS_PATTERN.fullmatch(settings.nats_listen)
    if match is None or not 0 < int(match["port"]) < 65536:
        sentence = "DARKROOM_NATS_LISTEN is not valid: an address and a port such as 10.0.0.5:4222 are needed."
        raise UserError(sentence, 400)
    host = match["six"] or match["host"]
    listen_address = ListenAddress(host, int(match["port"]), certificate, settings.nats_cert_key)
    if certificate is None and not listen_address.is_private:
        raise UserError(
            f"On {listen_address.host} others could read the pictures on their way: give DARKROOM_NATS_LISTEN an "
            "address of a private network such as 10.0.0.5:4222, or name a certificate with DARKROOM_NATS_CERT and "
            "DARKROOM_NATS_CERT_KEY.",
            400,
        )
    return listen_address


def _check_certificate(settings: Settings) -> Path | None:
    if (settings.nats_cert is None) != (settings.nats_cert_key is None):
        raise UserError("DARKROOM_NATS_CERT and DARKROOM_NATS_CERT_KEY go together: name both or neither.", 400)
    for file in (settings.nats_cert, settings.nats_cert_key):
        if file is not None and not file.is_file():
            raise UserError(f"The broker's certificate cannot be used: there is no file {file}.", 400)
    return settings.nats_cert
