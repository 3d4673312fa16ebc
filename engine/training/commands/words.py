"""The `darkroom train words` command: lists the labels and tags of the artwork that the model was trained on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from engine.training.commands.options import Cache


def words(
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The list, as JSON.")],
    cache: Cache = None,
) -> None:
    """Write the labels and tags of the built-in artwork as a list, for `darkroom lab nearest`."""
    from engine.training.commands import builtin
    from engine.training.pictures.artwork import LABELS

    known = {word for art in builtin.drawings(cache) for word in (art.words.label, *art.words.tags)}
    source = f"{LABELS.name} {LABELS.version}, {LABELS.credit}, {LABELS.licence}"
    out.parent.mkdir(parents=True, exist_ok=True)
    listed = json.dumps({"source": source, "words": sorted(known)}, ensure_ascii=False, indent=0)
    out.write_text(listed + "\n", "utf-8")
    typer.echo(f"{out}: {len(known):,} words")
