"""The `darkroom train judge` command: trains the classifier that the evaluation uses."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from training.commands.options import Cache, TrainOptions, with_train_options

if TYPE_CHECKING:
    from training.commands.session import Session

MAX_PARAMETERS, ACTIVATION_BYTES = (
    5_000_000,
    1_000_000,
)  # at most, of the judge; bytes that it keeps for a picture of a batch
RENDERING_PIXELS = 64 * 64


@with_train_options
def judge(options: TrainOptions, cache: Cache = None) -> None:
    """Train the judge of `darkroom train evaluate` on the built-in artwork. It never sees a generated picture."""
    from training.commands.session import open_session

    with open_session("judge", options) as session:
        raise typer.Exit(_train(session, options, cache))


def _train(session: Session, options: TrainOptions, cache: Path | None) -> int:
    import torch

    from engine.models.text_embedder import Embedder
    from training.commands import builtin_artwork
    from training.core import memory_estimate
    from training.evaluation.judge import save_judge
    from training.evaluation.judge_trainer import (
        RENDERINGS_PER_DRAWING,
        JudgeEvaluator,
        JudgeSettings,
        JudgeTrainer,
        collect_labels,
        held_back_pairs,
    )

    settings = session.resolve_settings(JudgeSettings, **options.setting_overrides)
    session.bind_origin({"pictures": "the built-in artwork"})
    pictures = builtin_artwork.load_drawings(cache)
    rendered_pixels = RENDERINGS_PER_DRAWING * len(pictures) * RENDERING_PIXELS
    memory_estimate.check_fits(
        memory_estimate.estimate_pixel_network(MAX_PARAMETERS, ACTIVATION_BYTES, settings.batch, rendered_pixels)
    )
    label_vectors = torch.tensor(Embedder()(collect_labels(pictures)))
    trainer = JudgeTrainer(pictures, label_vectors, settings, device=session.device)
    evaluator = JudgeEvaluator(trainer, held_back_pairs(pictures, 1, settings.seed))
    return session.train(trainer, evaluator, lambda: save_judge(evaluator.build_judge(), options.out))
