"""The `darkroom train words` command: lists the labels and tags of the artwork that the model was trained on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from training.commands.options import Cache


def words(
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The list, as JSON.")], cache: Cache = None
) -> None:
    """Write the labels and tags of the built-in artwork as a list, for `darkroom lab nearest`."""
    from training.commands import builtin_artwork
    from training.pictures.artwork import LABEL_PACKAGE

    vocabulary = {
        word for art in builtin_artwork.load_drawings(cache) for word in (art.description.label, *art.description.tags)
    }
    source = f"{LABEL_PACKAGE.name} {LABEL_PACKAGE.version}, {LABEL_PACKAGE.credit}, {LABEL_PACKAGE.licence}"
    out.parent.mkdir(parents=True, exist_ok=True)
    content = json.dumps({"source": source, "words": sorted(vocabulary)}, ensure_ascii=False, indent=0)
    out.write_text(content + "\n", "utf-8")
    typer.echo(f"{out}: {len(vocabulary):,} words")
