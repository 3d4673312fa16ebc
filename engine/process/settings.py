"""A worker's settings from its command line and the environment: read once, checked, frozen. Imports no torch."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    StringConstraints,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from engine.process.backend_settings import BackendSettings, parse_backend
from engine.process.log_format import LogFormat
from engine.process.offload_request import OFFLOAD_VARIABLE, OffloadRequest, parse_offload
from engine.process.quantization_request import QuantizationRequest, QuantizationRequests, parse_quantization

SIZE_PATTERN = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)\s*(?:([KMGT])(I?))?B?", re.IGNORECASE)
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
VARIABLES = {
    "nats": "DARKROOM_NATS",
    "nats_token": "DARKROOM_NATS_TOKEN",
    "nats_key": "DARKROOM_NATS_KEY",
    "nats_ca": "DARKROOM_NATS_CA",
    "name": "DARKROOM_WORKER_NAME",
    "data": "DARKROOM_DATA",
    "device": "DARKROOM_DEVICE",
    "parent": "DARKROOM_PARENT",
    "upscaler": "DARKROOM_UPSCALER",
    "memory": "DARKROOM_MEMORY",
    "graphs": "DARKROOM_CUDA_GRAPHS",
    "offload": OFFLOAD_VARIABLE,
    "log": "DARKROOM_LOG_FORMAT",
    "vae": "DARKROOM_VAE",
    "quantize": "DARKROOM_QUANTIZE",
    "quantize_text": "DARKROOM_QUANTIZE_TEXT",
}
CHECK_VARIABLES = {
    "folder": "DARKROOM_PICTURE_CHECK",
    "labels": "DARKROOM_PICTURE_CHECK_LABELS",
    "threshold": "DARKROOM_PICTURE_CHECK_THRESHOLD",
}


class SettingError(ValueError):
    """A setting is wrong; the text names it and says what is wrong with it."""


class PictureCheckSettings(BaseModel):
    """The picture check: a classifier's folder, its unsafe labels (none: by their names) and the threshold."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    folder: Path
    labels: Annotated[tuple[str, ...], Field(max_length=256)] = ()
    threshold: float = Field(0.5, gt=0, le=1, allow_inf_nan=False)

    @field_validator("folder")
    @classmethod
    def _make_absolute(cls, value: Path) -> Path:
        return value.expanduser().absolute()

    @field_validator("labels", mode="before")
    @classmethod
    def _split_labels(cls, value: object) -> object:
        return tuple(label.strip() for label in value.split(",") if label.strip()) if isinstance(value, str) else value


class SimulationSettings(BaseModel):
    """A simulated device: milliseconds per row of a forward, and the most rows of one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    row_ms: float = Field(0.5, gt=0, le=60_000, allow_inf_nan=False)
    rows: int = Field(32, ge=1, le=256)


class WorkerSettings(BaseModel):
    """A worker's settings.

    - `nats_key`: the worker's own key in place of the token.
    - `nats_ca`: certificates to trust behind `tls://`.
    - `device`: auto, cpu or cuda (`cuda:1` for the second).
    - `models`: names or folders; `added`: the default model and all added ones (`engine.hub.added_models`).
    - `memory`: bytes for models, given as 12GB; None: a share of the device's.
    - `parent`: the process that started this one; the worker ends with it; 0: none.
    - `upscaler`: a file; None: the built-in super-resolver.
    - `graphs`: on a GPU, record forwards as CUDA graphs.
    - `offload`: what stays off the device but while it runs: nothing, text encoders, or all layers; auto: what must.
    - `vae`: an autoencoder in the data folder that takes the place of each model's own that it fits.
    - `quantize`: how the weights of networks are stored; auto: the best that fits into `memory`.
    - `quantize_text`: the same of text encoders; None: as they are where `quantize` is none, else auto.
    - `simulated`: a device that only waits, without models.
    - `log`: the format of log lines.
    - `backend`: another server that draws in place of an engine here.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    nats: str = Field(min_length=1)
    nats_token: SecretStr = SecretStr("")
    nats_key: SecretStr = SecretStr("")
    nats_ca: Path | None = None
    name: Name
    models: Annotated[tuple[str, ...], Field(min_length=1, max_length=64)] = ("added",)
    pools: Annotated[tuple[Name, ...], Field(min_length=1, max_length=16)] = ("default",)
    data: Path
    device: str = "auto"
    parent: int = Field(0, ge=0)
    check: PictureCheckSettings | None = None
    upscaler: Path | None = None
    memory: int | None = None
    graphs: bool = False
    offload: OffloadRequest = "auto"
    vae: Annotated[str, StringConstraints(pattern=rf"{NAME_PATTERN}|^$")] = ""
    quantize: QuantizationRequest = "auto"
    quantize_text: QuantizationRequest | None = None
    log: LogFormat = "text"
    simulated: SimulationSettings | None = None
    backend: BackendSettings | None = None

    @field_validator("memory", mode="before")
    @classmethod
    def _parse_memory(cls, value: object) -> object:
        return parse_size(value) if isinstance(value, str) else value

    @field_validator("offload", mode="before")
    @classmethod
    def _parse_offload(cls, value: object) -> object:
        return parse_offload(value) if isinstance(value, str) else value

    @field_validator("quantize", "quantize_text", mode="before")
    @classmethod
    def _parse_quantization(cls, value: object) -> object:
        return parse_quantization(value) if isinstance(value, str) else value

    @property
    def quantization_requests(self) -> QuantizationRequests:
        return QuantizationRequests(self.quantize, self.quantize_text)

    @field_validator("nats_key")
    @classmethod
    def _refuse_key_and_token(cls, value: SecretStr, info: ValidationInfo) -> SecretStr:
        token = info.data.get("nats_token")
        if value.get_secret_value() and token is not None and token.get_secret_value():
            raise ValueError("a worker has a key or the broker's token, not both")
        return value

    @field_validator("data", "upscaler", "nats_ca")
    @classmethod
    def _make_absolute(cls, value: Path | None) -> Path | None:
        return value and value.expanduser().absolute()

    @field_validator("device")
    @classmethod
    def _check_device(cls, value: str) -> str:
        if not re.match(r"^(auto|cpu|cuda(:\d{1,2})?)$", value):
            raise ValueError("auto, cpu, cuda or cuda:1 is needed")
        return value

    @field_validator("nats")
    @classmethod
    def _check_address(cls, value: str) -> str:
        if not re.match(r"^(nats|tls|ws|wss)://[^\s/]+/?$", value):
            raise ValueError("an address such as nats://127.0.0.1:4222 is needed")
        return value


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


def load_settings(**arguments: Any) -> WorkerSettings:
    """Return the settings from arguments (`check`: a folder), environment, and defaults, in this order of precedence.

    Raises `SettingError`.
    """
    values: dict[str, Any] = {"name": default_name(), "data": default_data()}
    values |= _read_environment(VARIABLES)
    values |= {field: value for field, value in arguments.items() if value}
    values["check"] = load_check_settings(arguments.get("check"))
    if not values.get("nats"):
        raise SettingError("Name the broker with --nats or DARKROOM_NATS.")
    try:
        return WorkerSettings(**values)
    except ValidationError as error:
        raise _setting_error(error, VARIABLES) from None


def load_check_settings(folder: Path | None = None) -> PictureCheckSettings | None:
    """Return the picture check of `folder`, else of the environment; None if neither names one.

    Raises `SettingError`.
    """
    values: dict[str, Any] = _read_environment(CHECK_VARIABLES)
    if folder is not None:
        values["folder"] = folder
    if "folder" not in values:
        return None
    try:
        return PictureCheckSettings(**values)
    except ValidationError as error:
        raise _setting_error(error, CHECK_VARIABLES) from None


def _read_environment(variables: Mapping[str, str]) -> dict[str, Any]:
    """Return the values of those fields whose variable is set and not empty."""
    found = {field: os.environ.get(variable) for field, variable in variables.items()}
    return {field: value for field, value in found.items() if value}


def load_simulation_settings(is_enabled: bool, **arguments: float | None) -> SimulationSettings | None:
    """Return the simulated device. `arguments`: command-line values, None where absent. Raises `SettingError`."""
    values = {field: value for field, value in arguments.items() if value is not None}
    if values and not is_enabled:
        raise SettingError("--row-ms and --rows need --simulated.")
    try:
        return SimulationSettings.model_validate(values) if is_enabled else None
    except ValidationError as error:
        raise _setting_error(error, {"row_ms": "--row-ms", "rows": "--rows"}) from None


def load_backend_settings(text: str, workflows: Sequence[Path], size: int) -> BackendSettings | None:
    """Return the backend of the command line or the environment. Raises `SettingError`."""
    try:
        return parse_backend(text, workflows, size)
    except ValueError as error:
        raise SettingError(str(error)) from error


def upscaler_path() -> Path | None:
    """Return the file that the environment names in place of the built-in super-resolver."""
    path = os.environ.get(VARIABLES["upscaler"])
    return Path(path).expanduser().absolute() if path else None


def _setting_error(error: ValidationError, names: Mapping[str, str]) -> SettingError:
    first = error.errors(include_input=False, include_url=False)[0]  # an input may be a secret
    field = str(first["loc"][0]) if first["loc"] else "settings"
    return SettingError(f"{names.get(field, field)}: {first['msg'].removeprefix('Value error, ')}.")


def read_token(path: Path) -> str:
    """Return a token or key from a file, which keeps it out of process lists. Raises `SettingError`."""
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingError(f"The file {path.name} cannot be read: {type(error).__name__}.") from error


def default_name() -> str:
    """Return the host's name, reduced to the characters that the contract allows."""
    name = re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname()).lstrip("._-")[:64]
    return name or "worker"


def default_data() -> Path:
    """Return `$XDG_DATA_HOME/darkroom`, else `~/.local/share/darkroom`."""
    base = os.environ.get("XDG_DATA_HOME", "")
    return (Path(base) if base else Path.home() / ".local" / "share") / "darkroom"
