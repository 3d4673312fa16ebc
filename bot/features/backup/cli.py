"""`darkroom backup`: copies the database and the pictures that it names into one file; the bot may run meanwhile.

The database is copied first, as one consistent snapshot. Pictures never change under their names, so they may be copied
later. It leaves out the broker's content: SQL has every admitted job, and a bot publishes open jobs again when it
starts. It also leaves out keys and tokens: a stolen backup must not open the chatroom.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated

import typer

from bot.cli.new_file import write_new_file
from bot.cli.options import Data
from bot.domain.errors import UserError
from bot.features.backup.archive import ArchiveWriter, Manifest, file_sha256, restore

if TYPE_CHECKING:
    from bot.app.settings import Settings

USE_PG_DUMP = (
    "This store is PostgreSQL, which has a backup of its own: pg_dump --format=custom --file=darkroom.dump "
    '"$DATABASE_URL", and then `darkroom backup --pictures-only FILE.tar`.'
)


def backup(
    file: Annotated[Path, typer.Argument(metavar="FILE.tar", help="The file to write; it must not exist yet.")],
    pictures_only: Annotated[
        bool, typer.Option("--pictures-only", help="Pictures only, to go with a pg_dump of PostgreSQL.")
    ] = False,
    data: Data = None,
) -> None:
    """Copy the database and every picture into one file; the bot may run meanwhile."""
    from bot.app.settings import load_settings

    settings = load_settings(data)
    with write_new_file(file) as archive_file:
        work = _write_backup(settings, archive_file, pictures_only, file.absolute().parent)
        picture_count, missing_count = asyncio.run(work)
    typer.echo(f"{file}: {'' if pictures_only else 'the database and '}{picture_count} pictures and films.")
    if missing_count:
        single = "was deleted meanwhile or is not kept any more"
        reason = single if missing_count == 1 else "were deleted meanwhile or are lost"
        typer.echo(f"{missing_count} of them {reason}: not in the backup.")


async def _write_backup(
    settings: Settings, stream: IO[bytes], pictures_only: bool, parent_folder: Path
) -> tuple[int, int]:
    """Return how many pictures the backup has, and how many are missing."""
    from bot.pictures.picture_store import ContentMissing, PictureStore

    async with _copy_database(settings, pictures_only, parent_folder) as (database, picture_names):
        packer = ArchiveWriter(stream)
        packer.add_manifest(Manifest(time.time(), file_sha256(database) if database else "", len(picture_names)))
        if database:
            packer.add_database(database)
        pictures = PictureStore(settings.pictures)
        missing_count = 0
        for sha256 in picture_names:
            try:
                packer.add_picture(sha256, await pictures.get(sha256))
            except ContentMissing:
                missing_count += 1
        packer.close()
    return len(picture_names) - missing_count, missing_count


@asynccontextmanager
async def _copy_database(
    settings: Settings, pictures_only: bool, parent_folder: Path
) -> AsyncGenerator[tuple[Path | None, Sequence[str]]]:
    """Yield a copy of the database in a folder in `parent_folder` (None for pictures only), and the pictures that it
    names.
    """
    from bot.cli.store_session import no_store_error
    from bot.features.backup import store as sqlite_backup
    from bot.store import Store
    from bot.store.drivers.database import find_sqlite_path

    source = find_sqlite_path(settings.database)
    if source is None and not pictures_only:
        raise UserError(USE_PG_DUMP)
    if source is not None and not source.exists():
        raise no_store_error(settings)
    if pictures_only:
        store = await Store.open(settings.database)
        try:
            picture_names = await store.query(sqlite_backup.list_stored_hashes)
        finally:
            await store.close()
        yield None, picture_names
        return
    assert source is not None
    with tempfile.TemporaryDirectory(prefix=".backup-", dir=parent_folder) as folder:
        target = Path(folder) / "copy.sqlite"
        try:
            sqlite_backup.copy_database(source, target)
            picture_names = sqlite_backup.list_copy_hashes(target)
        except sqlite_backup.UnusableDatabase as error:
            raise UserError(str(error)) from error
        yield target, picture_names


COMMANDS = {"backup": backup, "restore": restore}
