"""`/sdapi/v1/sd-models` and `/options`: the models, and which one draws for those who ask without naming one.

Everybody chooses for themselves alone: `POST /sdapi/v1/options` changes nothing for others.
"""

from __future__ import annotations

from typing import Any

from aiohttp import web

from bot.apis.a1111.bodies import OptionsBody
from bot.apis.a1111.names import find_model, title_model
from bot.domain.dto import Member
from bot.services import Services
from bot.web.middleware import member_of
from bot.web.request_body import read_body
from bot.web.sse import SERVICES
from engine.contract import ModelProfile


async def list_profiles(services: Services, member: Member) -> list[ModelProfile]:
    """Return the models that a member may use, live ones first; all of them if the rules allow none."""
    profiles = services.catalog.list_profiles()
    rules = await services.rule_admin.effective_rules(member)
    return [profile for profile in profiles if rules.allows("models", profile.name)] or profiles


async def choose_profile(services: Services, member: Member, name: str | None = None) -> ModelProfile:
    """Return the named model, else the one that the member chose, else the default. Raises `UserError`."""
    if name:
        return find_model(name, services.catalog.list_profiles())
    chosen_name = await services.model_choices.load(member.id)
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
        await services.model_choices.choose(member.id, profile.name)
    return web.json_response(None)
