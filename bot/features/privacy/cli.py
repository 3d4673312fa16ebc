"""`darkroom forget` and `darkroom export`: delete or export a member's data at their request, for the operator.

A running bot does the deletion, since only it reaches Discord. Without one, this process deletes what it can. The lock
on the data folder tells whether a bot runs; for a database elsewhere, the leader term does.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated

import typer

from bot.cli.new_file import write_new_file
from bot.cli.options import Data
from bot.cli.rules import prefix_discord_id
from bot.domain.errors import UserError

if TYPE_CHECKING:
    from bot.app.settings import Settings
    from bot.services.data_deletion import DataDeletion
    from bot.store import Store

FORGET_TIMEOUT = 15.0  # for a running bot to notice the request
MemberId = Annotated[
    str, typer.Argument(metavar="MEMBER", callback=prefix_discord_id, help="As discord:123, or local:ann.")
]


def forget(
    member: MemberId,
    guild: Annotated[
        str, typer.Option(metavar="ID", callback=prefix_discord_id, help="In this server only; otherwise everywhere.")
    ] = "",
    data: Data = None,
) -> None:
    """Delete all jobs, pictures, messages and preferences of a member for good. Blocks stay."""
    from bot.cli.store_session import run_with_store

    settings = _load_settings(data)
    typer.echo(run_with_store(settings.database, lambda store: _forget_member(settings, store, member, guild)))


async def _forget_member(settings: Settings, store: Store, member: str, guild: str) -> str:
    """Delete the member's data, here or by the running bot; return what happened as a sentence."""
    from bot.cli.instance_lock import lock_data_folder
    from bot.store import NotLeader

    service = _build_forget_service(settings, store)
    job_count = await service.request_deletion(member, guild)
    try:
        with lock_data_folder(settings.data):
            async with _hold_leader_term(settings, store):
                await service.run_round()
            timing = "when a bot runs next"
    except (UserError, NotLeader):
        timing = "one by one by the running bot"
        await _wait_for_bot(service, member)
    if await service.is_under_way(member):
        return (
            f"{member}: {job_count} jobs are being forgotten; running jobs and Discord messages are deleted {timing}."
        )
    return f"{member}: {job_count} jobs and all their data are deleted. Blocks and moderators' decisions stay."


@asynccontextmanager
async def _hold_leader_term(settings: Settings, store: Store) -> AsyncGenerator[None]:
    """Hold a leader term where the folder's lock is not enough. Raise `UserError` if another bot leads."""
    if settings.database_url is None:
        yield
        return
    from bot.app.leader_election import keep_lead

    async with keep_lead(None, typer.echo, on_lost=lambda _: None) as leader:  # our writes then raise `NotLeader`
        await leader.begin_term(store)
        try:
            yield
        finally:
            leader.note_close()


def _build_forget_service(settings: Settings, store: Store) -> DataDeletion:
    """Build `DataDeletion` without broker and front ends."""
    from bot.domain.events import Feed
    from bot.jobs.retention import FileCleanup
    from bot.pictures.film_cache import FILMS, FilmCache
    from bot.pictures.picture_store import PictureStore
    from bot.services.data_deletion import DataDeletion
    from bot.services.front_end_actions import FrontEndActions

    films = FilmCache(settings.data / FILMS)

    async def request_cancel(job_id: str) -> object:
        return await store.request_cancel(job_id, time.time())

    return DataDeletion(
        store,
        request_cancel,
        FileCleanup(store, PictureStore(settings.pictures), films.forget),
        Feed(),
        FrontEndActions(),
        waits_for_discord=True,
    )


async def _wait_for_bot(service: DataDeletion, member: str) -> None:
    deadline = time.monotonic() + FORGET_TIMEOUT
    while await service.is_under_way(member) and time.monotonic() < deadline:
        await asyncio.sleep(0.25)


def export(
    member: MemberId,
    out: Annotated[Path, typer.Option(metavar="FILE.zip", help="The file to write; it must not exist yet.")],
    data: Data = None,
) -> None:
    """Write all that is kept of a member into one zip: jobs.json and their pictures."""
    from bot.cli.store_session import run_with_store

    settings = _load_settings(data)
    with write_new_file(out) as file:
        job_count, picture_count = run_with_store(
            settings.database, lambda store: _export_member(settings, store, member, file)
        )
    typer.echo(f"{out}: {job_count} jobs and {picture_count} pictures of {member}.")


async def _export_member(settings: Settings, store: Store, member: str, file: IO[bytes]) -> tuple[int, int]:
    """Write the zip; return how many jobs and pictures are in it."""
    from bot.features.privacy.service import DataExport
    from bot.pictures.picture_store import PictureStore

    exporter = DataExport(store, PictureStore(settings.pictures))
    contents = await exporter.collect_contents(member)
    return len(contents.document["jobs"]), await exporter.write_zip(contents, file)


def _load_settings(data: Path | None) -> Settings:
    """Return the settings. Raise `UserError` if there is no store, or no data folder beside a database elsewhere."""
    from bot.cli.store_session import load_store_settings, no_store_error

    settings = load_store_settings(data)
    if not settings.data.exists():
        raise no_store_error(settings)
    return settings


COMMANDS = {"forget": forget, "export": export}
