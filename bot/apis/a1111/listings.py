"""The lists that clients show as choices. What Darkroom has nothing of is an empty list: clients ask at their start."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from aiohttp import web

from bot.apis.a1111.control_units import SCRIPT, list_modules
from bot.apis.a1111.models import choose_profile, list_profiles
from bot.apis.a1111.names import SCHEDULERS, UPSCALERS, list_samplers
from bot.web.middleware import member_of
from bot.web.sse import SERVICES
from engine.contract import ModelProfile

UPSCALE_FACTOR = 4
EMPTY_LISTS = ("latent-upscale-modes", "hypernetworks", "face-restorers", "realesrgan-models", "prompt-styles")


async def _load_profiles(request: web.Request) -> list[ModelProfile]:
    return await list_profiles(request.app[SERVICES], member_of(request))


async def list_all_samplers(request: web.Request) -> web.Response:
    """List the samplers of all models; those of the caller's model first, its usual one before all."""
    own = await choose_profile(request.app[SERVICES], member_of(request))
    samplers = list_samplers(own, await _load_profiles(request))
    return web.json_response(
        [{"name": sampler.name, "aliases": list(sampler.aliases), "options": {}} for sampler in samplers]
    )


async def list_schedulers(request: web.Request) -> web.Response:
    """List the schedules of noise."""
    return web.json_response(
        [
            {"name": name, "label": label, "aliases": None, "default_rho": -1.0, "need_inner_model": False}
            for name, label in SCHEDULERS.items()
        ]
    )


async def list_upscalers(request: web.Request) -> web.Response:
    """List the upscalers."""
    names = {"None": 1, **dict.fromkeys(UPSCALERS, UPSCALE_FACTOR)}
    return web.json_response(
        [
            {"name": name, "model_name": None, "model_path": None, "model_url": None, "scale": scale}
            for name, scale in names.items()
        ]
    )


async def list_loras(request: web.Request) -> web.Response:
    """List the LoRAs of all models, with the weight that each usually has."""
    loras = _merge_by_name(lora for profile in await _load_profiles(request) for lora in profile.loras)
    return web.json_response(
        [
            {"name": lora.name, "alias": lora.name, "path": lora.name, "metadata": {"weight": lora.weight}}
            for lora in loras
        ]
    )


async def list_embeddings(request: web.Request) -> web.Response:
    """List the textual inversions: those of the caller's model as loaded, those of others as skipped."""
    own = await choose_profile(request.app[SERVICES], member_of(request))
    others = [part for profile in await _load_profiles(request) for part in profile.embeddings]
    loaded = {part.name: _serialize_embedding(own) for part in own.embeddings}
    skipped = {part.name: _serialize_embedding(None) for part in others if part.name not in loaded}
    return web.json_response({"loaded": loaded, "skipped": skipped})


def _serialize_embedding(profile: ModelProfile | None) -> dict[str, Any]:
    checkpoint = {"sd_checkpoint": None, "sd_checkpoint_name": profile.name if profile else None}
    return {"step": None, **checkpoint, "shape": None, "vectors": None}


async def list_autoencoders(request: web.Request) -> web.Response:
    """List the autoencoders that may take the place of a model's own."""
    parts = _merge_by_name(part for profile in await _load_profiles(request) for part in profile.autoencoders)
    return web.json_response([{"model_name": part.name, "filename": part.name} for part in parts])


def _merge_by_name(parts: Iterable[Any]) -> list[Any]:
    return list({part.name: part for part in parts}.values())


async def list_scripts(request: web.Request) -> web.Response:
    """List the scripts that run for pictures: what Darkroom has of the ControlNet extension."""
    return web.json_response({"txt2img": [SCRIPT], "img2img": [SCRIPT]})


async def get_control_version(request: web.Request) -> web.Response:
    """Return the version of the ControlNet extension's API that the units follow."""
    return web.json_response({"version": 2})


async def list_control_models(request: web.Request) -> web.Response:
    """List the control networks and reference adapters of all models."""
    profiles = await _load_profiles(request)
    parts = _merge_by_name(part for each in profiles for part in (*each.controls, *each.references))
    return web.json_response({"model_list": [part.name for part in parts]})


async def list_control_modules(request: web.Request) -> web.Response:
    """List the preprocessors that the workers can run."""
    return web.json_response({"module_list": list_modules(await _load_profiles(request))})


async def list_nothing(request: web.Request) -> web.Response:
    """List what Darkroom has none of."""
    return web.json_response([])
