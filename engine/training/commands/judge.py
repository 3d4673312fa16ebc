"""The `darkroom train judge` command: trains the classifier that the evaluation uses."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from engine.training.commands.options import Cache, Course, with_course

if TYPE_CHECKING:
    from engine.training.commands.session import Session

PARAMETERS, KEPT = 5_000_000, 1_000_000  # at most, of the judge; bytes that it keeps for a picture of a batch
RENDERED_AREA = 64 * 64


@with_course
def judge(course: Course, cache: Cache = None) -> None:
    """Train the judge of `darkroom train evaluate` on the built-in artwork. It never sees a generated picture."""
    from engine.training.commands.session import open_session

    with open_session("judge", course) as session:
        raise typer.Exit(_train(session, course, cache))


def _train(session: Session, course: Course, cache: Path | None) -> int:
    import torch

    from engine.training import memory
    from engine.training.commands import builtin
    from engine.training.evaluate.judge import save_judge
    from engine.training.evaluate.judge_trainer import (
        RENDERED,
        JudgeLook,
        JudgeSettings,
        JudgeTrainer,
        held_back,
        labels_of,
    )
    from engine.worker.embedding import Embedder

    settings = session.settings(JudgeSettings, **course.given)
    session.belongs({"pictures": "the built-in artwork"})
    pictures = builtin.drawings(cache)
    kept = RENDERED * len(pictures) * RENDERED_AREA
    memory.check(memory.of_pixels(PARAMETERS, KEPT, settings.batch, kept))
    trainer = JudgeTrainer(pictures, torch.tensor(Embedder()(labels_of(pictures))), settings)
    look = JudgeLook(trainer, held_back(pictures, 1, settings.seed))
    return session.train(trainer, look, lambda: save_judge(look.judge(), course.out))
