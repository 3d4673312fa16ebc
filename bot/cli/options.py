"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Data = Annotated[Path | None, typer.Option(help="Folder of the store and the pictures (DARKROOM_DATA).")]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print JSON on the standard output, all else on the error output.")
]
