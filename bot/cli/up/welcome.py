"""What `darkroom up` prints when it is open: its address, its models, and how to stop it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bot.domain.errors import UserError

if TYPE_CHECKING:
    from bot.app.settings import Settings


def format_welcome(settings: Settings, models: Sequence[str], page_url: str, backend_url: str = "") -> str:
    """Return the text. `models` as in `run_bot`; `backend_url`: of another server that draws.

    Raise `UserError` where the settings of the models are damaged.
    """
    discord = "connecting" if settings.discord_token else "not connected (set DISCORD_TOKEN)"
    if backend_url and models:
        engine = f"those of {backend_url}"
    else:
        engine = f"{', '.join(_list_names(models, settings.data))}, loading" if models else "on other machines"
    return f"""
  Darkroom is open: {page_url}

    model     {engine}
    Discord   {discord}
    data      {settings.data}
    stop      Ctrl-C

"""


def _list_names(models: Sequence[str], data: Path) -> list[str]:
    from engine.hub.added_models import expand_names
    from engine.process.model_settings import ModelSettingsError

    try:
        return expand_names(tuple(models), data)
    except ModelSettingsError as error:
        raise UserError(str(error)) from error
