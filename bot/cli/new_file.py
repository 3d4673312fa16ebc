"""Writes a file that is there completely or not at all, and replaces none."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from bot.domain.errors import UserError


@contextmanager
def write_new_file(file: Path) -> Generator[IO[bytes]]:
    """Yield a file that only its owner can read; name it `file` once it is complete and synced. Never overwrite.

    Raise `UserError`. An OSError without a number comes from the store or the picture store; its text says what is
    missing.
    """
    temp_path: Path | None = None
    try:
        if file.exists():
            raise _already_exists_error(file)
        descriptor, temp_name = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
        temp_path = Path(temp_name)
        with os.fdopen(descriptor, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        _link_into_place(temp_path, file)
    except OSError as error:
        reason = (error.strerror or str(error) or type(error).__name__).removesuffix(".")
        sentence = f"{reason}." if error.errno is None else f"{file} cannot be written: {reason.lower()}."
        raise UserError(sentence) from error
    finally:
        if temp_path is not None:
            temp_path.unlink(missing_ok=True)


def _link_into_place(temp_path: Path, file: Path) -> None:
    """Link the draft as `file`, which replaces nothing. On a disk without hard links (a USB stick), rename it."""
    try:
        os.link(temp_path, file)
    except FileExistsError as error:
        raise _already_exists_error(file) from error
    except OSError:
        if os.path.lexists(file):
            raise _already_exists_error(file) from None
        temp_path.rename(file)


def _already_exists_error(file: Path) -> UserError:
    return UserError(f"{file} is there already: name another file.")
