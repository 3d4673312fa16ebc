"""`darkroom restore`: turns a backup into a data folder and checks every part; the folder appears complete or not at
all.

Jobs that were open in the backup continue when a bot starts on the folder.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated

import typer

from bot.refused import Refused

if TYPE_CHECKING:
    from bot.cli.archive import Manifest, Part
    from bot.images.pictures import Pictures

SHOWN = 3  # names of missing pictures


def restore(
    file: Annotated[Path, typer.Argument(metavar="FILE.tar", exists=True, dir_okay=False, help="A backup.")],
    data: Annotated[Path, typer.Option(help="The new data folder; it must be empty, or not exist yet.")],
) -> None:
    """Make a data folder from a backup; every picture is checked against its name."""
    data = data.expanduser().absolute()
    if data.exists() and (not data.is_dir() or any(data.iterdir())):
        raise Refused(f"{data} is not empty: name a new folder with --data, so that nothing is lost.")
    with _staged(data) as stage, file.open("rb") as opened:
        lines = asyncio.run(_unpack(opened, stage))
    typer.echo("\n".join([f"Restored into {data}.", *lines]))


@contextmanager
def _staged(data: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes `data` at the end; an error removes it."""
    try:
        data.parent.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(prefix=f".{data.name}.restoring-", dir=data.parent))
        try:
            yield stage
            stage.rename(data)  # replaces nothing but an empty folder
        finally:
            shutil.rmtree(stage, ignore_errors=True)
    except OSError as error:
        raise Refused(f"{data} cannot be written: {(error.strerror or str(error)).lower()}.") from error


async def _unpack(file: IO[bytes], stage: Path) -> list[str]:
    """Write the parts into `stage`; return the lines to print."""
    from bot.cli.archive import DATABASE, Manifest, unpacked
    from bot.images.pictures import Pictures

    pictures, kept, manifest = Pictures(stage / "pictures"), set[str](), None
    for part in unpacked(file):
        if isinstance(part, Manifest):
            manifest = part
        elif part.name == DATABASE:
            await asyncio.to_thread(_database, part, manifest, stage / DATABASE)
        else:
            kept.add(await _picture(part, pictures))
    if manifest is not None and manifest.database:
        return _missing(stage / DATABASE, kept)
    return [f"{len(kept)} pictures and films; put the dump of their database back with pg_restore."]


def _database(part: Part, manifest: Manifest | None, target: Path) -> None:
    from bot.cli.archive import digest, spill

    spill(part, target)
    if manifest is None or digest(target) != manifest.database:
        raise Refused("The database in this backup is not the one that was put into it: the file is damaged.")


async def _picture(part: Part, pictures: Pictures) -> str:
    import hashlib

    from bot.cli.archive import reading

    with reading():
        content = part.content.read(part.size)
    if len(content) != part.size or hashlib.sha256(content).hexdigest() != part.name:
        raise Refused(f"The picture {part.name[:12]}… in this backup is not what its name says: the file is damaged.")
    return await pictures.put(content)


def _missing(database: Path, kept: set[str]) -> list[str]:
    """Check the database; return lines about it and the pictures that the backup lacks."""
    from bot.store import copying

    if not database.exists():
        raise Refused("This backup ends before its database: the file is damaged.")
    try:
        names = copying.contents(database)
    except copying.Unusable as error:
        raise Refused(f"The database in this backup cannot be used. {error}") from error
    found = [f"The database and {len(kept)} pictures and films; jobs that were open go on when a bot starts there."]
    if lost := [name for name in names if name not in kept]:
        shown = ", ".join(f"{name[:12]}…" for name in lost[:SHOWN]) + (", …" if len(lost) > SHOWN else "")
        said = "1 picture that it names is" if len(lost) == 1 else f"{len(lost)} pictures that it names are"
        found.append(f"{said} not in the backup: {shown}")
    return found
