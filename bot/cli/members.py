"""`darkroom forget` and `darkroom export`: what the machine's owner does when a member asks for it.

A running bot does the work of forgetting, since only it reaches Discord; without one it is done here as far as it goes.
Whether one runs is said by the lock on its data folder, and by its term where the database is not in that folder.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated

import typer

from bot.cli.backup import written
from bot.cli.options import Data
from bot.cli.rules import discord
from bot.refused import Refused

if TYPE_CHECKING:
    from bot.config import Settings
    from bot.desk.forgetting import Forgetting
    from bot.store import Store

PATIENCE_SECONDS = 15.0  # for a running bot to look into the store
Member = Annotated[str, typer.Argument(metavar="MEMBER", callback=discord, help="As discord:123, or local:ann.")]


def forget(
    member: Member,
    guild: Annotated[
        str, typer.Option(metavar="ID", callback=discord, help="In this server alone; else everywhere.")
    ] = "",
    data: Data = None,
) -> None:
    """Remove all jobs, pictures, messages and choices of a member for good. Blocks stay."""
    from bot.cli.at_the_store import at_the_store

    settings = _settings(data)
    typer.echo(at_the_store(settings.database, lambda store: _forgotten(settings, store, member, guild)))


async def _forgotten(settings: Settings, store: Store, member: str, guild: str) -> str:
    """What happened, as a sentence."""
    from bot.cli.running import only_one
    from bot.store import Deposed

    forgetting = _by_hand(settings, store)
    about = await forgetting.ask(member, guild)
    try:
        with only_one(settings.data):
            async with _fenced(settings, store):
                await forgetting.round()
            later = "when a bot runs next"
    except (Refused, Deposed):
        later = "one by one by the running bot"
        await _watch(forgetting, member)
    if await forgetting.under_way(member):
        return f"{member}: {about} jobs are being forgotten; what runs and what is shown in Discord goes {later}."
    return f"{member}: {about} jobs and all that hung on them are gone. Blocks and what moderators decided stay."


@asynccontextmanager
async def _fenced(settings: Settings, store: Store) -> AsyncIterator[None]:
    """Under a term of our own where the folder's lock says too little. Raises `Refused` beside a bot that leads."""
    if settings.database_url is None:
        yield
        return
    from bot.leader import leading

    async with leading(None, typer.echo, lost=lambda _: None) as leader:  # what we write is refused, which says enough
        await leader.begin(store)
        try:
            yield
        finally:
            leader.end()


def _by_hand(settings: Settings, store: Store) -> Forgetting:
    """As in a house, without broker and front ends."""
    from bot.desk.emptying import Emptying
    from bot.desk.forgetting import Forgetting
    from bot.feed import Feed
    from bot.images.pictures import Pictures

    async def wish(job: str) -> object:
        return await store.wish(job, time.time())

    return Forgetting(store, wish, Emptying(store, Pictures(settings.pictures)), Feed(), waits=True)


async def _watch(forgetting: Forgetting, member: str) -> None:
    ends = time.monotonic() + PATIENCE_SECONDS
    while await forgetting.under_way(member) and time.monotonic() < ends:
        await asyncio.sleep(0.25)


def export(
    member: Member,
    out: Annotated[Path, typer.Option(metavar="FILE.zip", help="Where it goes; it must not be there yet.")],
    data: Data = None,
) -> None:
    """Everything that is kept of a member: jobs.json and their pictures, in one zip."""
    from bot.cli.at_the_store import at_the_store

    settings = _settings(data)
    with written(out) as file:
        jobs, pictures = at_the_store(settings.database, lambda store: _exported(settings, store, member, file))
    typer.echo(f"{out}: {jobs} jobs and {pictures} pictures of {member}.")


async def _exported(settings: Settings, store: Store, member: str, file: IO[bytes]) -> tuple[int, int]:
    """How many jobs and pictures are in it."""
    from bot.desk.export import Export
    from bot.images.pictures import Pictures

    desk = Export(store, Pictures(settings.pictures))
    contents = await desk.contents(member)
    return len(contents.told["jobs"]), await desk.write(contents, file)


def _settings(data: Path | None) -> Settings:
    """Raises `Refused` where there is no store, or none of the pictures beside a database that is elsewhere."""
    from bot.cli.at_the_store import none_there, settings_of

    settings = settings_of(data)
    if not settings.data.exists():
        raise none_there(settings)
    return settings
