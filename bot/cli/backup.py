"""`darkroom backup`: copies the database and the pictures that it names into one file; the bot may run meanwhile.

The database is copied first, as one consistent snapshot. Pictures never change under their names, so they may be copied
later. The broker's content is left out: SQL has every admitted job, and a bot publishes open jobs again when it starts.
Keys and tokens are left out too: a stolen backup must not open the chatroom.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated

import typer

from bot.cli.options import Data
from bot.refused import Refused

if TYPE_CHECKING:
    from bot.cli.archive import Packer
    from bot.config import Settings
    from bot.images.pictures import Pictures

DUMPED = (
    "This store is PostgreSQL, which has a backup of its own: pg_dump --format=custom --file=darkroom.dump "
    "\"$DATABASE_URL\", and then `darkroom backup --pictures-only FILE.tar`."
)  # fmt: skip


def backup(
    file: Annotated[Path, typer.Argument(metavar="FILE.tar", help="The file to write; it must not exist yet.")],
    pictures_only: Annotated[
        bool, typer.Option("--pictures-only", help="Pictures only, to go with a pg_dump of PostgreSQL.")
    ] = False,
    data: Data = None,
) -> None:
    """Copy the database and every picture into one file; the bot may run meanwhile."""
    from bot.config import load

    settings = load(**({} if data is None else {"data": data}))
    with written(file) as out:
        kept, missing = asyncio.run(_packed(settings, out, pictures_only, file.absolute().parent))
    typer.echo(f"{file}: {'' if pictures_only else 'the database and '}{kept} pictures and films.")
    if missing:
        said = "was deleted meanwhile or is not kept any more" if missing == 1 else "were deleted meanwhile or are lost"
        typer.echo(f"{missing} of them {said}: not in the backup.")


@contextmanager
def written(file: Path) -> Iterator[IO[bytes]]:
    """Yield a file that only its owner can read; name it `file` once it is complete and synced. Never overwrite.

    Raise `Refused`. An OSError without a number comes from the store or the picture store; its text says what is
    missing.
    """
    draft: Path | None = None
    try:
        if file.exists():
            raise _taken(file)
        descriptor, name = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
        draft = Path(name)
        with os.fdopen(descriptor, "wb") as out:
            yield out
            out.flush()
            os.fsync(out.fileno())
        _name(draft, file)
    except OSError as error:
        why = (error.strerror or str(error) or type(error).__name__).removesuffix(".")
        raise Refused(f"{why}." if error.errno is None else f"{file} cannot be written: {why.lower()}.") from error
    finally:
        if draft is not None:
            draft.unlink(missing_ok=True)


def _name(draft: Path, file: Path) -> None:
    """Link the draft as `file`, which replaces nothing. Rename it on a disk without hard links, as a USB stick."""
    try:
        os.link(draft, file)
    except FileExistsError as error:
        raise _taken(file) from error
    except OSError:
        if os.path.lexists(file):
            raise _taken(file) from None
        draft.rename(file)


def _taken(file: Path) -> Refused:
    return Refused(f"{file} is there already: name another file.")


async def _packed(settings: Settings, out: IO[bytes], pictures_only: bool, beside: Path) -> tuple[int, int]:
    """Return how many pictures the backup has, and how many are missing."""
    import time

    from bot.cli.archive import Manifest, Packer, digest
    from bot.images.pictures import Pictures

    async with _database(settings, pictures_only, beside) as (database, names):
        packer = Packer(out)
        packer.manifest(Manifest(time.time(), digest(database) if database else "", len(names)))
        if database:
            packer.database(database)
        missing = await _pictures(packer, Pictures(settings.pictures), names)
        packer.close()
    return len(names) - missing, missing


@asynccontextmanager
async def _database(
    settings: Settings, pictures_only: bool, beside: Path
) -> AsyncIterator[tuple[Path | None, Sequence[str]]]:
    """Yield a copy of the database in a folder in `beside` (None for pictures only), and the pictures that it names."""
    from bot.cli.at_the_store import none_there
    from bot.store import Store, copying

    source = copying.file_of(settings.database)
    if source is None and not pictures_only:
        raise Refused(DUMPED)
    if source is not None and not source.exists():
        raise none_there(settings)
    if pictures_only:
        store = await Store.open(settings.database)
        try:
            names = await store.ask(copying.named)
        finally:
            await store.close()
        yield None, names
        return
    assert source is not None
    with tempfile.TemporaryDirectory(prefix=".backup-", dir=beside) as folder:
        target = Path(folder) / "copy.sqlite"
        try:
            copying.copy(source, target)
            names = copying.contents(target)
        except copying.Unusable as error:
            raise Refused(str(error)) from error
        yield target, names


async def _pictures(packer: Packer, pictures: Pictures, names: Sequence[str]) -> int:
    """Add the pictures. Return how many are missing."""
    from bot.images.pictures import Missing

    missing = 0
    for sha256 in names:
        try:
            content = await pictures.get(sha256)
        except Missing:
            missing += 1
        else:
            packer.picture(sha256, content)
    return missing
