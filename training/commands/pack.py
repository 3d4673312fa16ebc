"""The `darkroom train pack` command: writes the built-in artwork into one file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from training.commands.options import Cache


def pack(
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The file, such as artwork.safetensors.")],
    cache: Cache = None,
) -> None:
    """Write the built-in artwork into one file, for `--cache` on a machine without npm."""
    from training.commands import builtin_artwork
    from training.pictures.packed_artwork import SUFFIX, write_pack

    if out.suffix != SUFFIX:
        raise ValueError(f"--out takes a file whose name ends in {SUFFIX}.")
    drawings = builtin_artwork.load_drawings(cache, with_related_words=True)
    notices = builtin_artwork.read_notices(cache)
    lemmas = builtin_artwork.load_held_out_lemmas(cache)
    size = write_pack(out, drawings, notices, lemmas)
    typer.echo(f"{out}: {len(drawings):,} drawings, {size / 1e6:.1f} MB")
