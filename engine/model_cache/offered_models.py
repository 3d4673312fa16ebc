"""The models that a worker offers without being told: those of the data folder that fit here. Loads no model."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from engine.contract.rejection import JobRejected
from engine.hub.offered_models import expand_names
from engine.model_cache.cache import make_too_large_error
from engine.model_cache.discovery import LoadContext, discover_models
from engine.process.model_settings import ModelSettingsError

log = logging.getLogger(__name__)


def choose_models(names: Sequence[str], context: LoadContext, budget: int) -> list[str]:
    """Return the names of all models to offer. `added` stands for those of the data folder.

    Of these, one that is damaged or needs more than `budget` bytes is left out with a line in the log: nobody asked
    for it by name. Raises `JobRejected` where the settings of the models cannot be read.
    """
    try:
        expanded = expand_names(tuple(names), context.data)
    except ModelSettingsError as error:
        raise JobRejected(str(error), "worker") from error
    return [name for name in expanded if name in names or _is_usable(name, context, budget)] or list(names)


def _is_usable(name: str, context: LoadContext, budget: int) -> bool:
    try:
        [model] = discover_models([name], context)
        if model.size > budget:
            raise make_too_large_error(name, model.size, budget)
    except JobRejected as error:
        log.warning("%s is not offered: %s", name, error.sentence)
        return False
    return True
