"""Registry of families by pipeline class. In `engine/`, only `engine.models` chooses a family by these class names."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module
from types import MappingProxyType
from typing import Any

from engine.models import families
from engine.models.families.diffusers_family import DiffusersFamily
from engine.models.families.stable_diffusion import as_stable_diffusion, as_stable_diffusion_xl

# Inpainting pipelines, each with the function that reads it as the text-to-image pipeline of the same parts.
INPAINTING_PIPELINES: dict[str, Callable[[Any], Any]] = {
    "StableDiffusionInpaintPipeline": as_stable_diffusion,
    "StableDiffusionXLInpaintPipeline": as_stable_diffusion_xl,
}


@cache
def find_families() -> Mapping[str, type[DiffusersFamily]]:
    """Return the families of the package `families`, each by the pipeline classes that it names."""
    modules = [import_module(f"{families.__name__}.{each.name}") for each in pkgutil.iter_modules(families.__path__)]
    values: list[Any] = [value for module in modules for value in vars(module).values()]
    classes = [value for value in values if isinstance(value, type) and issubclass(value, DiffusersFamily)]
    # its own attribute only: FluxKontext is a Flux, but runs another class
    return MappingProxyType({name: family for family in classes for name in vars(family).get("pipelines", ())})


def has_family(class_name: str) -> bool:
    """Whether a family of ours runs pipelines of this class."""
    return class_name in INPAINTING_PIPELINES or class_name in find_families()
