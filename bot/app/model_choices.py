"""Reads what the operator chose for models: the default one, and the defaults of each (`darkroom models default`)."""

from __future__ import annotations

from pathlib import Path

from bot.domain.errors import UserError
from engine.process.model_settings import ModelSettingsError, ModelSettingsFile, read_model_settings


def read_model_choices(data: Path) -> ModelSettingsFile:
    """Return the choices of a data folder. Raise `UserError` where the file cannot be read."""
    try:
        return read_model_settings(data)
    except ModelSettingsError as error:
        raise UserError(str(error)) from error
