"""`darkroom models default`: the default model, and the default steps, sampler and guidance of each.

Reads `--quantize` of `darkroom models`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bot.cli.models.verification import make_unknown_error
from bot.domain.errors import UserError
from bot.prompt.sampler_names import SAMPLER_LIST, find_sampler
from engine.contract import Sampler
from engine.hub.added_models import find_place, list_added
from engine.hub.catalogue import WEIGHT_SUFFIXES
from engine.process.memory_requests import QuantizationRequest
from engine.process.memory_requests import parse_quantization as parse_request
from engine.process.model_settings import EMBEDDED_MODEL, ModelSettings, read_model_settings, write_model_settings


@dataclass(frozen=True)
class DefaultsRequest:
    """What was typed; empty or None: not given."""

    name: str
    steps: int | None = None
    sampler: str = ""
    guidance: float | None = None
    quantize: str = ""
    reset: bool = False


def choose_defaults(request: DefaultsRequest, data: Path) -> str:
    """Write the choice down; return the sentence about it. Raise `UserError` for an unknown model or sampler."""
    settings_file = read_model_settings(data)
    if not request.name:
        return f"The default model is {settings_file.default or EMBEDDED_MODEL}."
    _refuse_unknown_model(request.name, data)
    known = ModelSettings() if request.reset else settings_file.get(request.name)
    settings = ModelSettings(
        steps=request.steps or known.steps,
        sampler=_parse_sampler(request.sampler) or known.sampler,
        guidance=request.guidance or known.guidance,
        quantize=parse_quantization(request.quantize) or known.quantize,
    )
    if request == DefaultsRequest(request.name):
        default = "" if request.name == EMBEDDED_MODEL else request.name
        write_model_settings(data, type(settings_file)(default, settings_file.models))
        return f"{request.name} is the default model from the next start on."
    if request.name == EMBEDDED_MODEL and settings.quantize:
        raise UserError("The embedded model is small: it is not quantised.")
    write_model_settings(data, settings_file.with_model(request.name, settings))
    return f"{request.name}: {describe_settings(settings)}, from the next start on."


def describe_settings(settings: ModelSettings) -> str:
    """Return "30 steps of dpmpp_2m, guidance 6, int8", or that the model's own defaults hold."""
    parts = [f"{settings.steps} steps"] if settings.steps else []
    if settings.sampler:
        parts = [f"{parts[0]} of {settings.sampler}"] if parts else [settings.sampler]
    parts += [f"guidance {settings.guidance:g}"] if settings.guidance else []
    parts += [settings.quantize] if settings.quantize else []
    return ", ".join(parts) or "its own defaults"


def _parse_sampler(text: str) -> Sampler | None:
    if not text:
        return None
    sampler = find_sampler(text)
    if sampler is None:
        raise UserError(f"There is no sampler {text[:40]!r}: {SAMPLER_LIST}.")
    return sampler


def _refuse_unknown_model(name: str, data: Path) -> None:
    if name == EMBEDDED_MODEL or name in list_added(data):
        return
    folder = find_place(data, name).path
    if not folder.is_dir() and not any(folder.with_name(f"{name}{suffix}").is_file() for suffix in WEIGHT_SUFFIXES):
        raise make_unknown_error(name, [*list_added(data), EMBEDDED_MODEL])


def parse_quantization(text: str) -> QuantizationRequest | None:
    """Return the choice; None for no text. Raise `UserError` for any other word."""
    if not text:
        return None
    try:
        return parse_request(text)
    except ValueError as error:
        raise UserError(f"--quantize: {error}, not {text[:40]!r}.") from error
