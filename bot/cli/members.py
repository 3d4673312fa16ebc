"""`darkroom forget` and `darkroom export`: what the operator does at a member's request.

A running bot does the work of forgetting, since only it reaches Discord. Without one, this process does what it can.
The lock on the data folder tells whether a bot runs; for a database elsewhere, the leader term does.
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

PATIENCE_SECONDS = 15.0  # for a running bot to notice the request
Member = Annotated[str, typer.Argument(metavar="MEMBER", callback=discord, help="As discord:123, or local:ann.")]


def forget(
    member: Member,
    guild: Annotated[
        str, typer.Option(metavar="ID", callback=discord, help="In this server only; otherwise everywhere.")
    ] = "",
    data: Data = None,
) -> None:
    """Delete all jobs, pictures, messages and preferences of a member for good. Blocks stay."""
    from bot.cli.at_the_store import at_the_store

    settings = _settings(data)
    typer.echo(at_the_store(settings.database, lambda store: _forgotten(settings, store, member, guild)))


async def _forgotten(settings: Settings, store: Store, member: str, guild: str) -> str:
    """Delete what is kept of the member, here or by the running bot; return what happened as a sentence."""
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
        return f"{member}: {about} jobs are being forgotten; running jobs and Discord messages are deleted {later}."
    return f"{member}: {about} jobs and all their data are deleted. Blocks and moderators' decisions stay."


@asynccontextmanager
async def _fenced(settings: Settings, store: Store) -> AsyncIterator[None]:
    """Hold a leader term where the folder's lock is not enough. Raise `Refused` if another bot leads."""
    if settings.database_url is None:
        yield
        return
    from bot.leader import leading

    async with leading(None, typer.echo, lost=lambda _: None) as leader:  # our writes then raise `Deposed`
        await leader.begin(store)
        try:
            yield
        finally:
            leader.end()


def _by_hand(settings: Settings, store: Store) -> Forgetting:
    """Build `Forgetting` without broker and front ends."""
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
    out: Annotated[Path, typer.Option(metavar="FILE.zip", help="The file to write; it must not exist yet.")],
    data: Data = None,
) -> None:
    """Write all that is kept of a member into one zip: jobs.json and their pictures."""
    from bot.cli.at_the_store import at_the_store

    settings = _settings(data)
    with written(out) as file:
        jobs, pictures = at_the_store(settings.database, lambda store: _exported(settings, store, member, file))
    typer.echo(f"{out}: {jobs} jobs and {pictures} pictures of {member}.")


async def _exported(settings: Settings, store: Store, member: str, file: IO[bytes]) -> tuple[int, int]:
    """Write the zip; return how many jobs and pictures are in it."""
    from bot.desk.export import Export
    from bot.images.pictures import Pictures

    desk = Export(store, Pictures(settings.pictures))
    contents = await desk.contents(member)
    return len(contents.told["jobs"]), await desk.write(contents, file)


def _settings(data: Path | None) -> Settings:
    """Return the settings. Raise `Refused` if there is no store, or no data folder beside a database elsewhere."""
    from bot.cli.at_the_store import none_there, settings_of

    settings = settings_of(data)
    if not settings.data.exists():
        raise none_there(settings)
    return settings
