"""`darkroom restore`: turns a backup into a data folder and checks every part; the folder appears complete or not at
all.

Jobs that were open in the backup continue when a bot starts on the folder.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated

import typer

from bot.domain.errors import UserError

if TYPE_CHECKING:
    from bot.features.backup.archive import ArchivePart, Manifest
    from bot.pictures.picture_store import PictureStore

MAX_NAMES_SHOWN = 3  # names of missing pictures


def restore(
    file: Annotated[Path, typer.Argument(metavar="FILE.tar", exists=True, dir_okay=False, help="A backup.")],
    data: Annotated[Path, typer.Option(help="The new data folder; it must be empty, or not exist yet.")],
) -> None:
    """Make a data folder from a backup; every picture is checked against its name."""
    data = data.expanduser().absolute()
    if data.exists() and (not data.is_dir() or any(data.iterdir())):
        raise UserError(f"{data} is not empty: name a new folder with --data, so that nothing is lost.")
    with _staging_folder(data) as staging, file.open("rb") as stream:
        lines = asyncio.run(_unpack_backup(stream, staging))
    typer.echo("\n".join([f"Restored into {data}.", *lines]))


@contextmanager
def _staging_folder(data: Path) -> Generator[Path]:
    """Yield a temporary folder that becomes `data` at the end; an error removes it."""
    try:
        data.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{data.name}.restoring-", dir=data.parent))
        try:
            yield staging
            staging.rename(data)  # replaces nothing but an empty folder
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    except OSError as error:
        raise UserError(f"{data} cannot be written: {(error.strerror or str(error)).lower()}.") from error


async def _unpack_backup(file: IO[bytes], staging: Path) -> list[str]:
    """Write the parts into `staging`; return the lines to print."""
    from bot.features.backup.archive import DATABASE_NAME, Manifest, read_archive
    from bot.pictures.picture_store import PictureStore

    pictures = PictureStore(staging / "pictures")
    restored_names = set[str]()
    manifest = None
    for part in read_archive(file):
        if isinstance(part, Manifest):
            manifest = part
        elif part.name == DATABASE_NAME:
            await asyncio.to_thread(_restore_database, part, manifest, staging / DATABASE_NAME)
        else:
            restored_names.add(await _restore_picture(part, pictures))
    if manifest is not None and manifest.database:
        return _check_database(staging / DATABASE_NAME, restored_names)
    return [f"{len(restored_names)} pictures and films; put the dump of their database back with pg_restore."]


def _restore_database(part: ArchivePart, manifest: Manifest | None, target: Path) -> None:
    from bot.features.backup.archive import file_sha256, write_part

    write_part(part, target)
    if manifest is None or file_sha256(target) != manifest.database:
        raise UserError("The database in this backup is not the one that was put into it: the file is damaged.")


async def _restore_picture(part: ArchivePart, pictures: PictureStore) -> str:
    import hashlib

    from bot.features.backup.archive import translate_errors

    with translate_errors():
        content = part.content.read(part.size)
    if len(content) != part.size or hashlib.sha256(content).hexdigest() != part.name:
        raise UserError(f"The picture {part.name[:12]}… in this backup is not what its name says: the file is damaged.")
    return await pictures.put(content)


def _check_database(database: Path, restored_names: set[str]) -> list[str]:
    """Check the database; return lines about it and the pictures that the backup lacks."""
    from bot.features.backup import store as sqlite_backup

    if not database.exists():
        raise UserError("This backup ends before its database: the file is damaged.")
    try:
        names = sqlite_backup.list_copy_hashes(database)
    except sqlite_backup.UnusableDatabase as error:
        raise UserError(f"The database in this backup cannot be used. {error}") from error
    lines = [
        f"The database and {len(restored_names)} pictures and films; jobs that were open go on when a bot starts there."
    ]
    if missing_names := [name for name in names if name not in restored_names]:
        missing_text = ", ".join(f"{name[:12]}…" for name in missing_names[:MAX_NAMES_SHOWN]) + (
            ", …" if len(missing_names) > MAX_NAMES_SHOWN else ""
        )
        missing_summary = (
            "1 picture that it names is"
            if len(missing_names) == 1
            else f"{len(missing_names)} pictures that it names are"
        )
        lines.append(f"{missing_summary} not in the backup: {missing_text}")
    return lines
