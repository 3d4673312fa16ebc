"""The bot's settings, with those of its features: read once, validated, frozen. Opens nothing.

The core's are declared in `engine.process.settings`, a feature's in its folder. Secrets are `SecretStr`, so no log and
no error shows them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

from pydantic import BaseModel, Field

from bot.domain.errors import UserError
from bot.domain.feature import load_parts
from bot.policy.limits import Limits
from engine.process.setting_sources import (
    SettingError,
    SettingsFile,
    check_names,
    check_variables,
    list_secrets,
    list_settings,
    load,
    name_variable,
    read_file,
)
from engine.process.settings import CORE_SETTINGS, DAY_SECONDS, BotSettings, find_data_folder

Kind = TypeVar("Kind", bound=BaseModel)


class Settings(BotSettings):
    """Create it by `load_settings`. `features`: each feature's settings, by their class."""

    features: dict[type[BaseModel], BaseModel] = Field(default_factory=dict[type[BaseModel], BaseModel])

    def of(self, kind: type[Kind]) -> Kind:
        """Return a feature's settings."""
        return cast(Kind, self.features[kind])

    @property
    def database(self) -> str:
        """URL of the database, SQLite or PostgreSQL; by default a file in the data folder."""
        if self.database_url is not None:
            return self.database_url.get_secret_value()
        return f"sqlite:///{self.data / 'darkroom.sqlite'}"

    @property
    def pictures(self) -> str:
        """Where finished pictures are stored: a folder or an obstore URL; by default in the data folder."""
        return str(self.data / "pictures") if self.pictures_url is None else self.pictures_url.get_secret_value()

    @property
    def keep_seconds(self) -> float | None:
        """How long finished jobs are kept; None: for ever."""
        return None if self.keep_days is None else self.keep_days * DAY_SECONDS

    @property
    def keep_bytes(self) -> int | None:
        """The most bytes that pictures may take; None: no limit."""
        return None if self.keep_gb is None else int(self.keep_gb * 1e9)

    @property
    def limits(self) -> Limits:
        """The defaults for one member."""
        return Limits(running=self.running, queued=self.queued, cost_day=self.cost_day, relaxed_day=self.relaxed_day)


def load_settings(data: Path | None = None, *, features: Sequence[BaseModel] = (), **overrides: Any) -> Settings:
    """Load the settings; `data`, `overrides` (by field) and `features` win over environment and file.

    Raises `UserError`.
    """
    overrides |= {} if data is None else {"data": data}
    try:
        check_variables(name_variable(name, table) for table, kind in list_tables() for name in list_settings(kind))
        file = read_file(data or find_data_folder(), CORE_SETTINGS)
        loaded = load_feature_settings(file) | {type(given): given for given in features}
        return load(Settings, overrides | {"features": loaded}, file)
    except SettingError as error:
        raise UserError(str(error), 400) from None  # the cause would show the secret value


def list_tables() -> Iterable[tuple[str, type[BaseModel]]]:
    """Return every class of settings with its table of the file; the core's have none."""
    yield from (("", kind) for kind in CORE_SETTINGS)
    yield from ((name, part.SETTINGS) for name, part in load_parts("settings").items())


def list_secret_variables() -> frozenset[str]:
    """Return the variables of the bot's, the worker's and the features' secrets, but for a backend's key."""
    secrets = {name_variable(name, table) for table, kind in list_tables() for name in list_secrets(kind)}
    return frozenset(secrets - {name_variable("backend_key")})


def load_feature_settings(file: SettingsFile) -> dict[type[BaseModel], BaseModel]:
    """Return the settings of each feature that has some, by their class. Raises `SettingError`."""
    tables = {table: kind for table, kind in list_tables() if table}
    check_names(file.tables, tables, file.path)
    for table, entries in file.tables.items():
        check_names(entries, list_settings(tables[table]), f"{file.path}, [{table}]")
    return {kind: load(kind, {}, file, table) for table, kind in tables.items()}
