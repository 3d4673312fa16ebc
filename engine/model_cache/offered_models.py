"""The models that a worker offers without being told: those of the data folder that fit here. Loads no model."""

from __future__ import annotations

import logging
from collections.abc import Generator, Sequence
from contextlib import contextmanager

from engine.contract import JobRejected
from engine.hub.added_models import expand_names
from engine.model_cache.cache import make_too_large_error
from engine.model_cache.discovery import LoadContext, discover_models
from engine.process.model_settings import ModelSettingsError

log = logging.getLogger(__name__)


def choose_models(names: Sequence[str], context: LoadContext, budget: int) -> list[str]:
    """Return the names of all models to offer. `added` stands for those of the data folder.

    Of these, one that is damaged or needs more than `budget` bytes is left out with a line in the log: nobody asked
    for it by name. Raises `JobRejected` where no model is left, or the settings of the models cannot be read.
    """
    usable = list[str]()
    last_rejection = None
    try:
        expanded = expand_names(tuple(names), context.data)
    except ModelSettingsError as error:
        raise JobRejected(str(error), "worker") from error
    for name in expanded:
        try:
            if name not in names:
                _check(name, context, budget)
            usable.append(name)
        except JobRejected as rejection:
            log.warning("%s is not offered: %s", name, rejection.sentence)
            last_rejection = rejection
    if not usable and last_rejection is not None:
        raise last_rejection
    return usable


def _check(name: str, context: LoadContext, budget: int) -> None:
    with _without_choices_in_log():
        [model] = discover_models([name], context)
    if model.size > budget:
        raise make_too_large_error(name, model.size, budget)


@contextmanager
def _without_choices_in_log() -> Generator[None]:
    """Keep out of the log what `auto` chooses for a model alone: beside the others it may choose something else."""
    loggers = [logging.getLogger(name) for name in ("engine.model_cache.discovery", "engine.models")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
