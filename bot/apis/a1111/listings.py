"""The lists that clients show as choices. What Darkroom has nothing of is an empty list: clients ask at their start.

`/sdapi/v1/sd-models` and `/options`: the models, and which one draws for those who ask without naming one.

Everybody chooses for themselves alone: `POST /sdapi/v1/options` changes nothing for others.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from aiohttp import web

from bot.apis.a1111.bodies import OptionsBody
from bot.apis.a1111.names import SCHEDULERS, SCRIPT, UPSCALERS, find_model, list_modules, list_samplers, title_model
from bot.domain.dto import Member
from bot.services import Services
from bot.services.model_choices import ModelChoices
from bot.web.middleware import member_of
from bot.web.request_body import read_body
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


async def list_profiles(services: Services, member: Member) -> list[ModelProfile]:
    """Return the models that a member may use, live ones first; all of them if the rules allow none."""
    profiles = services.catalog.list_profiles()
    rules = await services.rule_admin.effective_rules(member)
    return [profile for profile in profiles if rules.allows("models", profile.name)] or profiles


async def choose_profile(services: Services, member: Member, name: str | None = None) -> ModelProfile:
    """Return the named model, else the one that the member chose, else the default. Raises `UserError`."""
    if name:
        return find_model(name, services.catalog.list_profiles())
    chosen_name = await services.get(ModelChoices).load(member.id)
    profile = services.catalog.find_profile(chosen_name) if chosen_name else None
    return profile or services.catalog.find_entry(None).profile


async def list_checkpoints(request: web.Request) -> web.Response:
    """List the models."""
    profiles = await list_profiles(request.app[SERVICES], member_of(request))
    return web.json_response([_serialize_model(profile) for profile in profiles])


def _serialize_model(profile: ModelProfile) -> dict[str, Any]:
    return {
        "title": title_model(profile),
        "model_name": profile.name,
        "hash": profile.revision[:10] or None,
        "sha256": None,  # the revision is a fingerprint of a folder, not of one file
        "filename": profile.name,
        "config": None,
    }


async def refresh_checkpoints(request: web.Request) -> web.Response:
    """Do nothing: the list of models is always that of the workers."""
    return web.json_response(None)


async def get_options(request: web.Request) -> web.Response:
    """Return the caller's model, and settings that never change."""
    profile = await choose_profile(request.app[SERVICES], member_of(request))
    return web.json_response(
        {
            "sd_model_checkpoint": title_model(profile),
            "sd_checkpoint_hash": profile.revision[:10],
            "sd_vae": "Automatic",
            "CLIP_stop_at_last_layers": 1,
            "samples_format": "png",
            "live_previews_enable": True,
            "show_progress_every_n_steps": 1,
        }
    )


async def set_options(request: web.Request) -> web.Response:
    """Choose the model of the caller's later requests. Other settings are ignored."""
    body = await read_body(request, OptionsBody)
    services = request.app[SERVICES]
    member = member_of(request)
    if body.sd_model_checkpoint:
        profile = find_model(body.sd_model_checkpoint, services.catalog.list_profiles())
        await services.get(ModelChoices).choose(member.id, profile.name)
    return web.json_response(None)
