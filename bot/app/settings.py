"""Settings from the environment: read once, validated, frozen. A bad value stops the start with one line.

Secrets are `SecretStr`, so no log and no error shows them. Opens nothing.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from bot.domain.errors import UserError
from bot.policy.limits import Limits
from engine.process.log_format import LogFormat

DISCORD_API = "https://discord.com/api/v10"
DAY_SECONDS = 86_400.0
DATABASE_SCHEMES = (
    "sqlite://",
    "sqlite+aiosqlite://",
    "postgresql://",
    "postgresql+psycopg://",
    "postgresql+asyncpg://",
    "postgres://",
)


def default_data_folder() -> Path:
    """Return `$XDG_DATA_HOME/darkroom`, else `~/.local/share/darkroom`."""
    base = os.environ.get("XDG_DATA_HOME", "")
    return (Path(base) if base else Path.home() / ".local" / "share") / "darkroom"


class Settings(BaseSettings):
    """Every setting with its name in the environment. Create it by `load_settings`."""

    model_config = SettingsConfigDict(frozen=True, env_ignore_empty=True, populate_by_name=True, extra="forbid")

    discord_token: SecretStr | None = Field(None, validation_alias="DISCORD_TOKEN")
    discord_api: str = Field(DISCORD_API, validation_alias="DISCORD_API")
    discord_gateway: str = Field("", validation_alias="DISCORD_GATEWAY")
    data: Path = Field(default_factory=default_data_folder, validation_alias="DARKROOM_DATA")
    nats: str = Field("", validation_alias="DARKROOM_NATS")
    nats_token: SecretStr | None = Field(None, validation_alias="DARKROOM_NATS_TOKEN")
    nats_ca: Path | None = Field(None, validation_alias="DARKROOM_NATS_CA")
    nats_listen: str = Field("", validation_alias="DARKROOM_NATS_LISTEN")
    nats_cert: Path | None = Field(None, validation_alias="DARKROOM_NATS_CERT")
    nats_cert_key: Path | None = Field(None, validation_alias="DARKROOM_NATS_CERT_KEY")
    database_url: SecretStr | None = Field(None, validation_alias="DATABASE_URL")
    pictures_url: SecretStr | None = Field(None, validation_alias="PICTURES_URL")
    public_url: str = Field("", validation_alias="PUBLIC_URL")
    api_key: SecretStr | None = Field(None, validation_alias="DARKROOM_API_KEY")
    metrics_token: SecretStr | None = Field(None, validation_alias="DARKROOM_METRICS_TOKEN")
    log: LogFormat = Field("text", validation_alias="DARKROOM_LOG_FORMAT")
    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = Field((), validation_alias="ALLOWED_HOSTS")
    webhook_hosts: Annotated[tuple[str, ...], NoDecode] = Field((), validation_alias="DARKROOM_WEBHOOK_HOSTS")
    host: str = Field("127.0.0.1", min_length=1, validation_alias="DARKROOM_HOST")
    port: int = Field(8189, ge=0, le=65535, validation_alias="DARKROOM_PORT")
    running: int = Field(3, ge=1, le=1000, validation_alias="DARKROOM_RUNNING")
    max_connections: int = Field(2000, ge=16, le=100_000, validation_alias="DARKROOM_MAX_CONNECTIONS")
    max_connections_per_address: int = Field(
        64, ge=8, le=100_000, validation_alias="DARKROOM_MAX_CONNECTIONS_PER_ADDRESS"
    )
    queued: int = Field(7, ge=0, le=100_000, validation_alias="DARKROOM_QUEUED")
    cost_day: float = Field(1800.0, gt=0, le=1e9, validation_alias="DARKROOM_COST_DAY")
    relaxed_day: float = Field(14_400.0, gt=0, le=1e9, validation_alias="DARKROOM_RELAXED_DAY")
    check: Path | None = Field(None, validation_alias="DARKROOM_PICTURE_CHECK")
    max_age: float = Field(DAY_SECONDS, ge=60, le=30 * DAY_SECONDS, validation_alias="DARKROOM_MAX_JOB_AGE")
    keep_days: float | None = Field(None, gt=0, le=36_500, validation_alias="DARKROOM_KEEP_DAYS")
    keep_gb: float | None = Field(None, gt=0, le=1e6, validation_alias="DARKROOM_KEEP_GB")

    @field_validator("allowed_hosts", "webhook_hosts", mode="before")
    @classmethod
    def _split_hosts(cls, value: object) -> object:
        return tuple(host.strip() for host in value.split(",") if host.strip()) if isinstance(value, str) else value

    @field_validator("data", "check", "nats_ca", "nats_cert", "nats_cert_key")
    @classmethod
    def _make_absolute(cls, value: Path | None) -> Path | None:
        return None if value is None else value.expanduser().absolute()

    @field_validator("discord_api", "public_url")
    @classmethod
    def _check_http_url(cls, value: str) -> str:
        return _check_scheme(value, "http://", "https://")

    @field_validator("discord_gateway")
    @classmethod
    def _check_websocket_url(cls, value: str) -> str:
        return _check_scheme(value, "ws://", "wss://")

    @field_validator("nats")
    @classmethod
    def _check_broker_url(cls, value: str) -> str:
        return _check_scheme(value, "nats://", "tls://")

    @field_validator("metrics_token")
    @classmethod
    def _check_token_length(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and len(value.get_secret_value()) < 16:
            raise ValueError("a token has 16 characters or more")
        return value

    @field_validator("database_url")
    @classmethod
    def _check_database_url(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not value.get_secret_value().startswith(DATABASE_SCHEMES):
            raise ValueError("it must begin with sqlite:/// or postgresql://")
        return value

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


def load_settings(**overrides: Any) -> Settings:
    """Load the environment's settings; `overrides` (by field) win. Raises `UserError` (400)."""
    try:
        return Settings(**overrides)
    except ValidationError as error:
        raise UserError(_error_sentence(error), 400) from None  # the cause would show the secret value


def _error_sentence(error: ValidationError) -> str:
    """Return the first error as a sentence, with the setting's name in the environment."""
    details = error.errors(include_url=False)[0]
    name = str(details["loc"][0]) if details["loc"] else "the settings"
    field = Settings.model_fields.get(name)
    variable = field.validation_alias if field is not None else name
    message = str(details["msg"]).removeprefix("Value error, ")
    return f"{variable} is not valid: {message[:1].lower()}{message[1:]}."


def _check_scheme(value: str, *schemes: str) -> str:
    if value and not value.startswith(schemes):
        raise ValueError(f"it must begin with {' or '.join(schemes)}")
    return value
