"""`darkroom forget` and `darkroom export`: what the machine's owner does when a member asks for it.

A running bot does the work of forgetting, since only it reaches Discord; without one it is done here as far as it goes.
"""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bot.cli.rules import discord
from bot.refused import Refused

if TYPE_CHECKING:
    from bot.config import Settings
    from bot.desk.forgetting import Forgetting
    from bot.store import Store

PATIENCE_SECONDS = 15.0  # for a running bot to look into the store
Member = Annotated[str, typer.Argument(metavar="MEMBER", callback=discord, help="As discord:123, or local:ann.")]
Data = Annotated[Path | None, typer.Option(help="Folder of the store and the pictures (DARKROOM_DATA).")]


def forget(
    member: Member,
    guild: Annotated[
        str, typer.Option(metavar="ID", callback=discord, help="In this server alone; else everywhere.")
    ] = "",
    data: Data = None,
) -> None:
    """Remove all jobs, pictures, messages and choices of a member for good. Blocks stay."""
    settings = _settings(data)
    typer.echo(asyncio.run(_forgotten(settings, member, guild)))


async def _forgotten(settings: Settings, member: str, guild: str) -> str:
    """What happened, as a sentence."""
    from bot.cli.running import only_one
    from bot.store import Store

    store = await Store.open(settings.database)
    try:
        forgetting = _by_hand(settings, store)
        about = await forgetting.ask(member, guild)
        try:
            with only_one(settings.data):
                await forgetting.round()
                later = "when a bot runs next"
        except Refused:
            later = "one by one by the running bot"
            await _watch(forgetting, member)
        if await forgetting.under_way(member):
            return f"{member}: {about} jobs are being forgotten; what runs and what is shown in Discord goes {later}."
        return f"{member}: {about} jobs and all that hung on them are gone. Blocks and what moderators decided stay."
    finally:
        await store.close()


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
    settings = _settings(data)
    try:
        with os.fdopen(os.open(out, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            from bot.desk.export import Export
            from bot.images.pictures import Pictures
            from bot.store import Store

            async def written() -> tuple[int, int]:
                store = await Store.open(settings.database)
                try:
                    desk = Export(store, Pictures(settings.pictures))
                    contents = await desk.contents(member)
                    return len(contents.told["jobs"]), await desk.write(contents, file)
                finally:
                    await store.close()

            jobs, pictures = asyncio.run(written())
    except FileExistsError as error:
        raise Refused(f"{out} is there already: name another file.") from error
    except OSError as error:
        raise Refused(f"{out} cannot be written: {(error.strerror or str(error)).lower()}.") from error
    typer.echo(f"{out}: {jobs} jobs and {pictures} pictures of {member}.")


def _settings(data: Path | None) -> Settings:
    from bot.config import load

    settings = load(**({} if data is None else {"data": data}))
    if not settings.data.exists():
        raise Refused(f"There is no store in {settings.data}: name its folder with --data.")
    return settings
