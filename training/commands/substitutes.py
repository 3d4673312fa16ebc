"""The `darkroom train substitutes` command: lists the nouns for which the embedded model reads another word."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from training.commands.options import Cache


def substitutes(
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The list, as JSON.")], cache: Cache = None
) -> None:
    """Write the nouns of WordNet that no label has, each with the label of the nearest drawing, which is drawn."""
    import msgspec

    from engine.process.model_words import SubstitutesFile
    from training.commands import builtin_artwork
    from training.pictures.artwork import WORDNET_PACKAGE

    source = f"{WORDNET_PACKAGE.name} {WORDNET_PACKAGE.version}, {WORDNET_PACKAGE.credit}: see LICENSE.WordNet"
    nouns = builtin_artwork.load_substitutes(cache)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(msgspec.json.format(msgspec.json.encode(SubstitutesFile(source, nouns)), indent=1) + b"\n")
    typer.echo(f"{out}: {len(nouns):,} nouns")
