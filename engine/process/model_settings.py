"""What the operator chose for each model, in `<data>/models.json`: the default model, and steps, sampler, guidance.

`darkroom models` writes it; a worker reads it when it starts. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta, Struct, field
from msgspec.structs import replace

from engine.contract import JobRejected, ModelProfile, Name, Sampler
from engine.contract.fields import MAX_STYLES, Style
from engine.process.memory_requests import QuantizationRequest, QuantizationRequests, split_model_request
from engine.process.system import write_atomically
from engine.prompt.style_guide import StyleGuide

EMBEDDED_MODEL = "embedded"  # the name of the model that comes with Darkroom
SETTINGS_FILE = "models.json"


class ModelSettings(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Defaults of one model; None is the model's own. `quantize`: how its network is kept in memory."""

    steps: Annotated[int, Meta(ge=1, le=1000)] | None = None
    sampler: Sampler | None = None
    guidance: Annotated[float, Meta(ge=1, le=30)] | None = None
    quantize: QuantizationRequest | None = None

    def apply(self, model_profile: ModelProfile) -> ModelProfile:
        """Return the profile with these defaults. A sampler that the model does not have leaves steps and sampler."""
        if self.sampler is not None and self.sampler not in model_profile.samplers:
            return replace(model_profile, guidance=self.guidance or model_profile.guidance)
        return replace(
            model_profile,
            steps=self.steps or model_profile.steps,
            sampler=self.sampler or model_profile.sampler,
            guidance=self.guidance or model_profile.guidance,
        )


class ModelSettingsFile(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The whole file. `default`: the model that is offered first; empty: the embedded one."""

    default: str = ""
    models: Mapping[Name, ModelSettings] = field(default_factory=dict[str, ModelSettings])

    def get(self, name: str) -> ModelSettings:
        """Return a model's settings; its own defaults where nothing was chosen."""
        return self.models.get(name, ModelSettings())

    def with_model(self, name: str, settings: ModelSettings) -> ModelSettingsFile:
        return replace(self, models={**self.models, name: settings})

    def without_model(self, name: str) -> ModelSettingsFile:
        others = {other: settings for other, settings in self.models.items() if other != name}
        return ModelSettingsFile("" if self.default == name else self.default, others)


class ModelSettingsError(ValueError):
    """The file cannot be read; the text says what is wrong and how to mend it."""


def read_model_settings(data: Path) -> ModelSettingsFile:
    """Return the file, empty where there is none. Raises `ModelSettingsError` where it cannot be read."""
    path = data / SETTINGS_FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=ModelSettingsFile)
    except FileNotFoundError:
        return ModelSettingsFile()
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ModelSettingsError(f"The file {path} cannot be read ({error}): mend it, or delete it.") from error


def write_model_settings(data: Path, settings: ModelSettingsFile) -> None:
    """Write the file. Raises OSError."""
    write_atomically(data / SETTINGS_FILE, msgspec.json.format(msgspec.json.encode(settings)) + b"\n")


def find_requests(model: str, requests: QuantizationRequests, data: Path) -> tuple[str, QuantizationRequests]:
    """Return the model and what holds for it: `sdxl=int8` wins, then `--quantize`, then `darkroom models --quantize`.

    Raises `JobRejected` where the settings of the models cannot be read.
    """
    name, own_requests = split_model_request(model, requests)
    if name != model or requests.network != "auto":
        return name, own_requests
    try:
        choice = read_model_settings(data).get(name).quantize
    except ModelSettingsError as error:
        raise JobRejected(str(error), "worker") from error
    return (name, requests) if choice is None else (name, QuantizationRequests(choice, requests.text))


WEIGHTS_FOLDER = Path(__file__).parents[1] / "weights"
SUBSTITUTES_FILE = Path("substitutes") / "nouns.json"
STYLES_FILE = Path("styles") / "labels.json"
FileKind = TypeVar("FileKind", bound=Struct)


class SubstitutesFile(Struct, frozen=True, forbid_unknown_fields=True):
    """The file of `darkroom train substitutes`. `source`: where the meanings come from, with licence."""

    source: str
    nouns: Mapping[str, str]


class StylesFile(Struct, frozen=True, forbid_unknown_fields=True):
    """The file of `darkroom train styles`: the main style, and for each other one the labels that come out well."""

    main_style: Style
    labels_by_style: Annotated[Mapping[Style, list[str]], Meta(max_length=MAX_STYLES // 2)]  # each takes turns with it


def read_substitutes(weights: Path) -> Mapping[str, str]:
    """Read the nouns that the network never learned, each with the label in its place. Raises `JobRejected`."""
    file = _read_list(weights / SUBSTITUTES_FILE, SubstitutesFile)
    return file.nouns if file is not None else {}


def read_style_guide(weights: Path = WEIGHTS_FOLDER) -> StyleGuide | None:
    """Read which styles suit which labels; None for a model without such a list. Raises `JobRejected`."""
    file = _read_list(weights / STYLES_FILE, StylesFile)
    if file is None:
        return None
    labels_by_style = {style: frozenset(labels) for style, labels in file.labels_by_style.items()}
    return StyleGuide(file.main_style, labels_by_style, read_substitutes(weights))


def _read_list(path: Path, kind: type[FileKind]) -> FileKind | None:
    if not path.is_file():
        return None
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, msgspec.DecodeError) as error:
        raise JobRejected(f"The model's {path.parent.name}/{path.name} cannot be read: {error}.", "model") from error
