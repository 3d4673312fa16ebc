"""The `darkroom train lora` command: trains a LoRA for a Stable Diffusion model on captioned pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from training.commands.options import Flip, TrainOptions, with_train_options

CaptionedFolder = Annotated[Path, typer.Option("--data", metavar="FOLDER", help="Captioned pictures.")]
BaseModel = Annotated[
    str, typer.Option("--model", help="embedded, a diffusers folder, or a name on the model hub, in safetensors.")
]
Rank = Annotated[int | None, typer.Option(min=1, max=1024, help="Rank of the LoRA.  [default: 8]")]
Alpha = Annotated[
    float | None, typer.Option(min=1e-3, max=1e4, help="The LoRA is scaled by alpha/rank.  [default: the rank]")
]
Size = Annotated[int | None, typer.Option(min=16, max=4096, help="Side of the pictures; by default the model's.")]
Precision = Annotated[
    Literal["bf16", "fp32"] | None, typer.Option(help="Number format of the network.  [default: bf16]")
]
Merge = Annotated[
    Path | None, typer.Option("--merge", metavar="FOLDER", help="Also write the model with the LoRA merged.")
]


@with_train_options
def lora(
    options: TrainOptions,
    data: CaptionedFolder,
    model: BaseModel = "embedded",
    rank: Rank = None,
    alpha: Alpha = None,
    size: Size = None,
    precision: Precision = None,
    merge: Merge = None,
    flip: Flip = False,
) -> None:
    """Train a LoRA on a folder of captioned pictures; the model itself stays as it is."""
    from training.commands import run_lora
    from training.commands.session import open_session

    overrides = {**options.setting_overrides, "rank": rank, "alpha": alpha, "size": size, "precision": precision}
    with open_session("lora", options, data) as session:
        raise typer.Exit(run_lora.train_lora(session, model, data, merge, flip, overrides))
