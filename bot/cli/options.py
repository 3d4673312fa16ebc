"""Options that several commands share."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bot.domain.errors import UserError

if TYPE_CHECKING:
    from bot.app.settings import Settings
    from engine.process.settings import WorkerSettings

TERMINAL_MEMBER_ID = "local:terminal"  # the member that the terminal is (`bot.web.middleware.member_of`)
Data = Annotated[Path | None, typer.Option(help="Folder of the store and the pictures (DARKROOM_DATA).")]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print JSON on the standard output, all else on the error output.")
]
QuantizeOption = Annotated[
    str,
    typer.Option(
        metavar="HOW",
        help="Store networks as int8, int4, fp8 or nf4, not at all (none), or as fits (auto; DARKROOM_QUANTIZE).",
    ),
]
QuantizeTextOption = Annotated[
    str, typer.Option(metavar="HOW", help="The same for text encoders (DARKROOM_QUANTIZE_TEXT, else auto).")
]
OffloadOption = Annotated[
    str,
    typer.Option(
        metavar="WHAT",
        help="Keep off the device but while they run: text encoders (text), also networks (layers), none, or what must "
        "be (auto; DARKROOM_OFFLOAD).",
    ),
]


@dataclass(frozen=True)
class EngineOptions:
    """What an engine's command line is given beside its models: budget, as 12GB, autoencoder, how weights are kept,
    and what stays off the device.

    With a `backend`, as KIND=ADDRESS, another server draws. Empty: as variables and file say.
    """

    memory: str = ""
    vae: str = ""
    quantize: str = ""
    quantize_text: str = ""
    offload: str = ""
    backend: str = ""

    def list_arguments(self) -> list[str]:
        """Return them as the engine's command line takes them."""
        values = asdict(self).items()
        return [part for name, value in values if value for part in (f"--{name.replace('_', '-')}", value)]


AS_CONFIGURED = EngineOptions()


def list_given(options: Mapping[str, object]) -> dict[str, object]:
    """Return the options that were typed: no None, no flag that is off, no empty list."""
    return {name: value for name, value in options.items() if value is not None and value is not False and value != []}


def format_minute(at: float) -> str:
    """Return a time (seconds since 1970) by this machine's clock, as 2026-03-01 17:05."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(at))


def print_json(value: Any) -> None:
    """Print a value as indented JSON."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def load_engine(settings: Settings, options: EngineOptions = AS_CONFIGURED) -> WorkerSettings:
    """Return the settings of an engine on this machine, by options, variables and file. Raises `UserError`."""
    from engine.process.setting_sources import SettingError
    from engine.process.settings import load_settings

    try:
        return load_settings(data=settings.data, picture_check=settings.picture_check, **asdict(options))
    except SettingError as error:
        raise UserError(str(error)) from error
