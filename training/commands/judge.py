"""The `darkroom train judge` command: trains the classifier that the evaluation uses."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from training.commands.options import Cache, TrainOptions, with_train_options

if TYPE_CHECKING:
    from training.commands.session import Session

# of a rendering; of the first stage, each other has a quarter
RENDERING_PIXELS = 64 * 64
STAGE_PIXELS = 16 * 16
STAGE_VALUE_BYTES = 36  # that a picture of a batch keeps for each output of a stage
Widths = Annotated[
    str | None,
    typer.Option(
        metavar="N,N,…", help="Channels of each stage, for another architecture than the built-in judge: 48,96,192,320."
    ),
]


@with_train_options
def judge(options: TrainOptions, cache: Cache = None, widths: Widths = None) -> None:
    """Train the judge of `darkroom train evaluate` on the built-in artwork. It never sees a generated picture."""
    from training.commands.session import open_session
    from training.evaluation.judge_trainer import parse_widths

    parsed_widths = None if widths is None else ",".join(map(str, parse_widths(widths)))
    with open_session("judge", options) as session:
        raise typer.Exit(_train(session, options, cache, parsed_widths))


def _train(session: Session, options: TrainOptions, cache: Path | None, widths: str | None) -> int:
    import torch

    from engine.models.judge import save_judge
    from engine.models.text_embedder import Embedder
    from training.commands import builtin_artwork
    from training.core import memory_estimate
    from training.evaluation.judge_trainer import (
        RENDERINGS_PER_DRAWING,
        JudgeEvaluator,
        JudgeSettings,
        JudgeTrainer,
        collect_labels,
        count_parameters,
        held_back_pairs,
        parse_widths,
    )

    settings = session.resolve_settings(JudgeSettings, widths=widths, **options.setting_overrides)
    session.bind_origin({"pictures": "the built-in artwork"})
    pictures = builtin_artwork.load_drawings(cache)
    labels = collect_labels(pictures)
    stage_widths = parse_widths(settings.widths)
    stage_bytes = STAGE_VALUE_BYTES * sum(width * STAGE_PIXELS / 4**stage for stage, width in enumerate(stage_widths))
    parameter_count = count_parameters(len(labels), stage_widths)
    rendered_pixels = RENDERINGS_PER_DRAWING * len(pictures) * RENDERING_PIXELS
    memory_estimate.check_fits(
        memory_estimate.estimate_pixel_network(parameter_count, stage_bytes, settings.batch, rendered_pixels)
    )
    trainer = JudgeTrainer(pictures, torch.tensor(Embedder()(labels)), settings, device=session.device)
    evaluator = JudgeEvaluator(trainer, held_back_pairs(pictures, 1, settings.seed))
    return session.train(trainer, evaluator, lambda: save_judge(evaluator.build_judge(), options.out))
