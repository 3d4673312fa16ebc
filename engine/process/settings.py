"""Every setting of an operator, for bot and worker, declared once: a field with its type, default and description.

The variable of `keep_days` is `DARKROOM_KEEP_DAYS`, its line in `darkroom.toml` begins with `keep_days =`.
`tools/write_docs.py` writes docs/settings.md and .env.example from the fields. Imports no torch.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    StringConstraints,
    ValidationInfo,
    field_validator,
)

from engine.process.backend_kinds import join_words, list_forms, load_backend_kinds
from engine.process.log_format import LogFormat
from engine.process.memory_requests import (
    OffloadRequest,
    QuantizationRequest,
    QuantizationRequests,
    parse_offload,
    parse_quantization,
)
from engine.process.setting_sources import SettingError, check_variables, list_settings, load, name_variable, read_file

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
SIZE_PATTERN = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)\s*(?:([KMGT])(I?))?B?", re.IGNORECASE)
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
MIN_BACKEND_SIZE = 16  # pixels
MIN_TOKEN_CHARACTERS = 16
NO_SECRET = SecretStr("")


def default_data() -> Path:
    """Return `$XDG_DATA_HOME/darkroom`, else `~/.local/share/darkroom`."""
    base = os.environ.get("XDG_DATA_HOME", "")
    return (Path(base) if base else Path.home() / ".local" / "share") / "darkroom"


def default_name() -> str:
    """Return the host's name, reduced to the characters that the contract allows."""
    name = re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname()).lstrip("._-")[:64]
    return name or "worker"


def parse_size(text: str) -> int:
    """Return the bytes of `12GB`, `11.5 GiB` or `800M`. Raises ValueError that says which form is needed."""
    match = SIZE_PATTERN.fullmatch(text.strip())
    size = 0.0
    if match is not None:
        base = 1024 if match[3] else 1000
        size = float(match[1]) * base ** " KMGT".index((match[2] or " ").upper())
    if size < 1:
        raise ValueError("a size such as 12GB is needed")
    return int(size)


def _parse_text(parse: Callable[[str], object]) -> BeforeValidator:
    return BeforeValidator(lambda value: parse(value) if isinstance(value, str) else value)


def _require_beginning(*beginnings: str) -> AfterValidator:
    def check(value: str) -> str:
        if value and not value.startswith(beginnings):
            raise ValueError(f"it must begin with {' or '.join(beginnings)}")
        return value

    return AfterValidator(check)


def _require_match(pattern: str, need: str) -> AfterValidator:
    def check(value: str) -> str:
        if value and not re.match(pattern, value):
            raise ValueError(f"{need} is needed")
        return value

    return AfterValidator(check)


def _check_database(value: SecretStr) -> SecretStr:
    if not value.get_secret_value().startswith(DATABASE_SCHEMES):
        raise ValueError("it must begin with sqlite:/// or postgresql://")
    return value


def _check_token(value: SecretStr) -> SecretStr:
    if len(value.get_secret_value()) < MIN_TOKEN_CHARACTERS:
        raise ValueError(f"a token has {MIN_TOKEN_CHARACTERS} characters or more")
    return value


AbsolutePath = Annotated[Path, AfterValidator(lambda path: path.expanduser().absolute())]
Words = Annotated[
    tuple[str, ...],
    _parse_text(lambda text: tuple(word.strip() for word in text.split(",") if word.strip())),
    Field(max_length=256),
]
Address = Annotated[str, _require_beginning("http://", "https://")]
BrokerAddress = Annotated[
    str, _require_match(r"^(nats|tls|ws|wss)://[^\s/]+/?$", "an address such as nats://127.0.0.1:4222")
]
Device = Annotated[str, _require_match(r"^(auto|cpu|cuda(:\d{1,2})?)$", "auto, cpu, cuda or cuda:1")]
Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
Quantization = Annotated[QuantizationRequest, _parse_text(parse_quantization)]


class SharedSettings(BaseModel):
    """The settings of bot and worker alike."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: AbsolutePath = Field(
        default_factory=default_data, description="the data folder; else `~/.local/share/darkroom`"
    )
    nats: BrokerAddress = Field(
        "", description="a NATS server elsewhere, as `nats://HOST:4222`; without one `darkroom up` starts its own"
    )
    nats_token: SecretStr = Field(NO_SECRET, description="that server's token, or `user:password`")
    nats_ca: AbsolutePath | None = Field(None, description="a file with the certificates to trust behind `tls://`")
    picture_check: AbsolutePath | None = Field(None, description="a folder with a classifier that checks each picture")
    log_format: LogFormat = Field("text", description="`text`, or `json` for one object a line")


class BotSettings(SharedSettings):
    """The settings of the bot alone: Discord, the chatroom, the store, the limits that hold without a rule."""

    discord_token: SecretStr | None = Field(None, description="the token of your Discord application's bot")
    discord_api: Address = Field(DISCORD_API, description="where Discord's API is, for a proxy")
    discord_gateway: Annotated[str, _require_beginning("ws://", "wss://")] = Field(
        "", description="where Discord's gateway is; else as the API says"
    )
    database_url: Annotated[SecretStr, AfterValidator(_check_database)] | None = Field(
        None, description="`postgresql://USER:PASSWORD@HOST/DATABASE`; else a SQLite file in the data folder"
    )
    pictures_url: SecretStr | None = Field(
        None, description="where pictures are stored: a folder, or `s3://…`; else in the data folder"
    )
    host: str = Field("127.0.0.1", min_length=1, description="the address that the chatroom listens on")
    port: int = Field(8189, ge=0, le=65535, description="its port; 0: a free one")
    public_url: Address = Field("", description="the address of the chatroom as others see it, behind a proxy")
    allowed_hosts: Words = Field((), description="further host names that the chatroom answers to")
    api_key: SecretStr | None = Field(None, description="the key that `darkroom mcp` and `--url` ask with")
    metrics_token: Annotated[SecretStr, AfterValidator(_check_token)] | None = Field(
        None, description="a token of 16 characters or more that may read `/metrics`"
    )
    max_connections: int = Field(2000, ge=16, le=100_000, description="the most connections of the chatroom at once")
    max_connections_per_address: int = Field(
        64, ge=8, le=100_000, description="the most of one public address, or of an IPv6 network of 64 bits"
    )
    nats_listen: str = Field(
        "", description="where our own broker listens for workers, as `10.0.0.5:4222`; else this machine only"
    )
    nats_cert: AbsolutePath | None = Field(None, description="that broker's certificate")
    nats_cert_key: AbsolutePath | None = Field(None, description="the key of that certificate")
    running: int = Field(3, ge=1, le=1000, description="jobs of a member that run at once, without a rule")
    queued: int = Field(7, ge=0, le=100_000, description="jobs of a member that wait besides, without a rule")
    cost_day: float = Field(
        1800.0, gt=0, le=1e9, description="device time of a member in 24 hours, in seconds, without a rule"
    )
    relaxed_day: float = Field(
        14_400.0, gt=0, le=1e9, description="the same for relaxed jobs, in seconds, without a rule"
    )
    max_job_age: float = Field(
        DAY_SECONDS, ge=60, le=30 * DAY_SECONDS, description="seconds after which a job that waits is given up"
    )
    keep_days: float | None = Field(
        None, gt=0, le=36_500, description="days after which jobs and their pictures are deleted; else never"
    )
    keep_gb: float | None = Field(
        None, gt=0, le=1e6, description="gigabytes that pictures may take before the oldest are deleted; else all"
    )


@dataclass(frozen=True)
class PictureCheckSettings:
    """The picture check: a classifier's folder, its unsafe labels (none: by their names) and the threshold."""

    folder: Path
    labels: tuple[str, ...] = ()
    threshold: float = 0.5


@dataclass(frozen=True)
class BackendSettings:
    """A backend. `key`: for `Authorization`; of the form NAME:PASSWORD it is sent as Basic. `size`: pixels; 0: guess.

    `kind`: a folder of `engine.backends`. `workflows`: files for a server that runs such; none: the built-in ones.
    """

    kind: str
    url: str
    key: SecretStr = NO_SECRET
    workflows: tuple[Path, ...] = ()
    size: int = 0


class SimulationSettings(BaseModel):
    """A simulated device: milliseconds per row of a forward, and the most rows of one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    row_ms: float = Field(default=0.5, gt=0, le=60_000, allow_inf_nan=False)
    rows: int = Field(default=32, ge=1, le=256)


class WorkerSettings(SharedSettings):
    """The settings of a worker alone. The fields without a description are options of its command line.

    - `models`: names or folders; `added`: the default model and all added ones (`engine.hub.added_models`).
    - `workflows`, `backend_size`: of the backend.
    - `simulated`: a device that only waits, without models.
    """

    nats_key: SecretStr = Field(NO_SECRET, description="the worker's own key, in place of the broker's token")
    worker_name: Name = Field(default_factory=default_name, description="its unique name; else the host's")
    device: Device = Field("auto", description="`auto`, `cpu`, `cuda` or `cuda:1`")
    memory: Annotated[int, _parse_text(parse_size)] | None = Field(
        None, description="memory for models, as `12GB`; else a share of the device's"
    )
    offload: Annotated[OffloadRequest, _parse_text(parse_offload)] = Field(
        "auto", description="what stays off the device but while it runs: `none`, `text`, `layers`, or `auto`"
    )
    quantize: Quantization = Field(
        "auto", description="how networks are stored: `int8`, `int4`, `fp8`, `nf4`, `none`, or `auto`: as fits"
    )
    quantize_text: Quantization | None = Field(
        None, description="the same for text encoders; else `none` where networks are, or `auto`"
    )
    vae: Annotated[str, StringConstraints(pattern=rf"{NAME_PATTERN}|^$")] = Field(
        "", description="an autoencoder in the folder `vaes`, in place of the own one of each model that it fits"
    )
    upscaler: AbsolutePath | None = Field(
        None, description="a super-resolver in safetensors, in place of the built-in one"
    )
    cuda_graphs: bool = Field(False, description="on a GPU, record forwards as CUDA graphs")
    picture_check_labels: Words = Field((), description="the labels that count as unsafe; else by their names")
    picture_check_threshold: float = Field(
        0.5, gt=0, le=1, allow_inf_nan=False, description="the score from which on a picture is flagged"
    )
    parent: int = Field(0, ge=0, description="the process that the worker ends with; `darkroom up` sets it")
    backend_key: SecretStr = Field(NO_SECRET, description="the backend's key, or `NAME:PASSWORD`")
    workflows: Annotated[tuple[AbsolutePath, ...], Field(max_length=3)] = ()
    backend_size: int = Field(0, ge=0, le=2048)
    backend: BackendSettings | None = Field(
        None, validate_default=True, description="another server that draws, as `KIND=ADDRESS`"
    )
    models: Annotated[tuple[str, ...], Field(min_length=1, max_length=64)] = ("added",)
    pools: Annotated[tuple[Name, ...], Field(min_length=1, max_length=16)] = ("default",)
    simulated: SimulationSettings | None = None

    @property
    def quantization_requests(self) -> QuantizationRequests:
        return QuantizationRequests(self.quantize, self.quantize_text)

    @property
    def check(self) -> PictureCheckSettings | None:
        if self.picture_check is None:
            return None
        return PictureCheckSettings(self.picture_check, self.picture_check_labels, self.picture_check_threshold)

    @field_validator("nats_key")
    @classmethod
    def _refuse_key_and_token(cls, value: SecretStr, info: ValidationInfo) -> SecretStr:
        token = info.data.get("nats_token")
        if value.get_secret_value() and token is not None and token.get_secret_value():
            raise ValueError("a worker has a key or the broker's token, not both")
        return value

    @field_validator("backend_size")
    @classmethod
    def _check_size(cls, value: int) -> int:
        if 0 < value < MIN_BACKEND_SIZE:
            raise ValueError(f"a size of {MIN_BACKEND_SIZE} pixels or more is needed")
        return value

    @field_validator("backend", mode="before")
    @classmethod
    def _parse_backend(cls, value: object, info: ValidationInfo) -> object:
        """Make a backend of `KIND=ADDRESS`, with the key of its own setting."""
        workflows = info.data.get("workflows", ())
        size = info.data.get("backend_size", 0)
        if not value and (workflows or size):
            raise ValueError("--workflow and --size need --backend")
        if not isinstance(value, str):
            return value
        name, _, url = value.partition("=")
        kinds = load_backend_kinds()
        if name not in kinds or not url:
            raise ValueError(f"{list_forms()} is needed")
        if workflows and not kinds[name].takes_workflows:
            takers = join_words([f"{name}=…" for name, each in kinds.items() if each.takes_workflows])
            raise ValueError(f"--workflow is for --backend {takers} alone")
        if not re.match(r"^https?://[^\s@?#]+$", url):
            key = name_variable("backend_key")
            raise ValueError(f"an address without a key is needed; the key belongs into {key}")
        return BackendSettings(name, url.rstrip("/"), info.data.get("backend_key", NO_SECRET), workflows, size)


CORE_SETTINGS = (BotSettings, WorkerSettings)


def find_data_folder() -> Path:
    """Return the data folder that the environment names, else the usual one."""
    return Path(os.environ.get(name_variable("data")) or default_data())


def load_settings(**arguments: Any) -> WorkerSettings:
    """Return a worker's settings. `arguments`: from the command line; they win where they are not empty.

    Raises `SettingError`.
    """
    given = {name: value for name, value in arguments.items() if value}
    check_variables(name_variable(name) for kind in CORE_SETTINGS for name in list_settings(kind))
    file = read_file(given.get("data") or find_data_folder(), CORE_SETTINGS)
    credentials = ("nats_token", "nats_key")  # one that is given takes the place of the file's, whichever that is
    if any(given.get(name) or os.environ.get(name_variable(name)) for name in credentials):
        file = replace(file, values={name: value for name, value in file.values.items() if name not in credentials})
    return load(WorkerSettings, given, file)


def read_token(path: Path) -> str:
    """Return a token or key from a file, which keeps it out of process lists. Raises `SettingError`."""
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingError(f"The file {path.name} cannot be read: {type(error).__name__}.") from error
