"""What the operator chose for each model, in `<data>/models.json`: the default model, and steps, sampler, guidance.

`darkroom models` writes it; a worker reads it when it starts. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct, field
from msgspec.structs import replace

from engine.contract import ModelProfile, Name, Sampler
from engine.process.atomic_file import write_atomically
from engine.process.quantization_request import QuantizationRequest

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
