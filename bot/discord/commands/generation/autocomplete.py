"""Autocomplete choices of `/imagine`: samplers with advice, LoRAs, controls and models.

Pure but for discord's choices. It knows a model by what its workers announce.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING

from discord.app_commands import Choice

from bot.discord.job_choice import MAX_CHOICE_CHARS, MAX_CHOICES
from bot.prompt.default_cost import format_default_cost
from engine.contract import SAMPLER_TITLES
from engine.contract.samplers import SAMPLER_ROWS

if TYPE_CHECKING:
    from engine.contract import ModelProfile, Sampler

SAMPLER_ADVICE: Mapping[Sampler, str] = MappingProxyType({row.name: row.advice for row in SAMPLER_ROWS})


def sampler_choices(
    model: ModelProfile | None, current: str, advice: Mapping[Sampler, str] = SAMPLER_ADVICE
) -> list[Choice[str]]:
    """Return the model's samplers, each with its translated advice; all of them if the model is unknown."""
    query = current.casefold()
    sampler_names = model.samplers if model else tuple(SAMPLER_TITLES)
    labels = ((name, f"{SAMPLER_TITLES[name]}: {advice[name]}"[:MAX_CHOICE_CHARS]) for name in sampler_names)
    choices = [Choice(name=text, value=name) for name, text in labels if query in f"{name} {text}".casefold()]
    return choices[:MAX_CHOICES]


def lora_choices(model: ModelProfile | None, current: str) -> list[Choice[str]]:
    """Return the model's LoRAs, each at its usual weight, behind what was typed before the last comma."""
    return _complete_list([f"{lora.name}:{lora.weight:g}" for lora in (model.loras if model else ())], current)


def control_choices(model: ModelProfile | None, current: str) -> list[Choice[str]]:
    """Return the model's control networks, behind what was typed before the last comma."""
    return _complete_list([control.name for control in (model.controls if model else ())], current)


def _complete_list(names: Sequence[str], current: str) -> list[Choice[str]]:
    """Complete the last name of a list with commas."""
    before, comma, query = current.rpartition(",")
    prefix = f"{before.strip()}, " if comma else ""
    texts = [f"{prefix}{name}" for name in names if query.strip().casefold() in name.casefold()]
    return [Choice(name=text, value=text) for text in texts if len(text) <= MAX_CHOICE_CHARS][:MAX_CHOICES]


def model_choices(all_models: list[ModelProfile], current: str) -> list[Choice[str]]:
    """Return models by name with what a picture costs; one that is only on disk says that it is loaded on demand."""
    notes = {model.name: _describe_model(model) for model in reversed(all_models)}
    names = [
        name for name in dict.fromkeys(model.name for model in all_models) if current.casefold() in name.casefold()
    ]
    return [Choice(name=f"{name}{notes[name]}"[:MAX_CHOICE_CHARS], value=name) for name in names][:MAX_CHOICES]


def _describe_model(model: ModelProfile) -> str:
    """Return " (about 12 s a picture, loaded on demand)", or what of it is known."""
    parts = [format_default_cost(model), "" if model.loaded else "loaded on demand"]
    text = ", ".join(part for part in parts if part)
    return f" ({text})" if text else ""
