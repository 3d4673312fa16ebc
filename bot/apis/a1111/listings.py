"""The lists that clients show as choices. What Darkroom has nothing of is an empty list: clients ask at their start.

`/sdapi/v1/sd-models` and `/options`: the models, and which one draws for those who ask without naming one.

Everybody chooses for themselves alone: `POST /sdapi/v1/options` changes nothing for others.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from aiohttp import web

from bot.apis.a1111.bodies import OptionsBody
from bot.apis.a1111.names import SCHEDULERS, SCRIPT, UPSCALERS, find_model, list_modules, list_samplers
from bot.domain.dto import Member
from bot.jobs.preferences import ModelChoices
from bot.services import Services
from bot.web.middleware import member_of
from bot.web.request_body import read_body
from bot.web.routes import answer_json
from bot.web.sse import SERVICES
from engine.contract import ModelProfile

UPSCALE_FACTOR = 4
EMPTY_LISTS = ("latent-upscale-modes", "hypernetworks", "face-restorers", "realesrgan-models", "prompt-styles")


class WebuiName(msgspec.Struct, frozen=True):
    """What is known by its name alone."""

    name: str


class WebuiScheduler(msgspec.Struct, frozen=True):
    """A schedule of noise."""

    name: str
    label: str
    aliases: None = None
    default_rho: float = -1.0
    need_inner_model: bool = False


class WebuiUpscaler(msgspec.Struct, frozen=True):
    """An upscaler, and how much larger it makes a picture."""

    name: str
    scale: int
    model_name: None = None
    model_path: None = None
    model_url: None = None


class WebuiLora(msgspec.Struct, frozen=True):
    """A LoRA, with the weight that it usually has."""

    name: str
    alias: str
    path: str
    metadata: dict[str, float]


class WebuiAutoencoder(msgspec.Struct, frozen=True):
    """An autoencoder that may take the place of a model's own."""

    model_name: str
    filename: str


class WebuiEmbeddings(msgspec.Struct, frozen=True):
    """Textual inversions by name: those of the caller's model, and others."""

    loaded: dict[str, Any]
    skipped: dict[str, Any]


class WebuiScripts(msgspec.Struct, frozen=True):
    """The scripts that run for pictures."""

    txt2img: Sequence[str] = (SCRIPT,)
    img2img: Sequence[str] = (SCRIPT,)


class WebuiControlVersion(msgspec.Struct, frozen=True):
    """The version of the ControlNet extension's API that the units follow."""

    version: int = 2


class WebuiControlModels(msgspec.Struct, frozen=True):
    """The names of control networks and reference adapters."""

    model_list: list[str]


class WebuiControlModules(msgspec.Struct, frozen=True):
    """The names of preprocessors."""

    module_list: list[str]


class WebuiModel(msgspec.Struct, frozen=True):
    """A model. Clients send its title back, and some compare it without its case."""

    title: str
    model_name: str
    hash: str | None
    filename: str
    sha256: None = None  # the revision is a fingerprint of a folder, not of one file
    config: None = None


class WebuiOptions(msgspec.Struct, frozen=True):
    """The caller's model, and settings that never change."""

    sd_model_checkpoint: str
    sd_checkpoint_hash: str
    sd_vae: str = "Automatic"
    CLIP_stop_at_last_layers: int = 1
    samples_format: str = "png"
    live_previews_enable: bool = True
    show_progress_every_n_steps: int = 1


async def _load_profiles(request: web.Request) -> list[ModelProfile]:
    return await list_profiles(request.app[SERVICES], member_of(request))


async def list_all_samplers(request: web.Request) -> web.Response:
    """List the samplers of all models; those of the caller's model first, its usual one before all."""
    own = await choose_profile(request.app[SERVICES], member_of(request))
    return answer_json(list_samplers(own, await _load_profiles(request)))


async def list_schedulers(request: web.Request) -> web.Response:
    """List the schedules of noise."""
    return answer_json([WebuiScheduler(name, label) for name, label in SCHEDULERS.items()])


async def list_upscalers(request: web.Request) -> web.Response:
    """List the upscalers."""
    return answer_json([WebuiUpscaler("None", 1), *(WebuiUpscaler(name, UPSCALE_FACTOR) for name in UPSCALERS)])


async def list_loras(request: web.Request) -> web.Response:
    """List the LoRAs of all models, with the weight that each usually has."""
    loras = _merge_by_name(lora for profile in await _load_profiles(request) for lora in profile.loras)
    return answer_json([WebuiLora(lora.name, lora.name, lora.name, {"weight": lora.weight}) for lora in loras])


async def list_embeddings(request: web.Request) -> web.Response:
    """List the textual inversions: those of the caller's model as loaded, those of others as skipped."""
    own = await choose_profile(request.app[SERVICES], member_of(request))
    others = [part for profile in await _load_profiles(request) for part in profile.embeddings]
    loaded = {part.name: _serialize_embedding(own) for part in own.embeddings}
    skipped = {part.name: _serialize_embedding(None) for part in others if part.name not in loaded}
    return answer_json(WebuiEmbeddings(loaded, skipped))


def _serialize_embedding(profile: ModelProfile | None) -> dict[str, Any]:
    checkpoint = {"sd_checkpoint": None, "sd_checkpoint_name": profile.name if profile else None}
    return {"step": None, **checkpoint, "shape": None, "vectors": None}


async def list_autoencoders(request: web.Request) -> web.Response:
    """List the autoencoders that may take the place of a model's own."""
    parts = _merge_by_name(part for profile in await _load_profiles(request) for part in profile.autoencoders)
    return answer_json([WebuiAutoencoder(part.name, part.name) for part in parts])


def _merge_by_name(parts: Iterable[Any]) -> list[Any]:
    return list({part.name: part for part in parts}.values())


async def list_scripts(request: web.Request) -> web.Response:
    """List the scripts that run for pictures: what Darkroom has of the ControlNet extension."""
    return answer_json(WebuiScripts())


async def get_control_version(request: web.Request) -> web.Response:
    """Return the version of the ControlNet extension's API that the units follow."""
    return answer_json(WebuiControlVersion())


async def list_control_models(request: web.Request) -> web.Response:
    """List the control networks and reference adapters of all models."""
    profiles = await _load_profiles(request)
    parts = _merge_by_name(part for each in profiles for part in (*each.controls, *each.references))
    return answer_json(WebuiControlModels([part.name for part in parts]))


async def list_control_modules(request: web.Request) -> web.Response:
    """List the preprocessors that the workers can run."""
    return answer_json(WebuiControlModules(list_modules(await _load_profiles(request))))


async def list_nothing(request: web.Request) -> web.Response:
    """List what Darkroom has none of."""
    return answer_json([])


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
    profiles = await _load_profiles(request)
    return answer_json([WebuiModel(one.name, one.name, one.revision[:10] or None, one.name) for one in profiles])


async def refresh_checkpoints(request: web.Request) -> web.Response:
    """Do nothing: the list of models is always that of the workers."""
    return answer_json(None)


async def get_options(request: web.Request) -> web.Response:
    """Return the caller's model, and settings that never change."""
    profile = await choose_profile(request.app[SERVICES], member_of(request))
    return answer_json(WebuiOptions(profile.name, profile.revision[:10]))


async def set_options(request: web.Request) -> web.Response:
    """Choose the model of the caller's later requests. Other settings are ignored."""
    body = await read_body(request, OptionsBody)
    services = request.app[SERVICES]
    member = member_of(request)
    if body.sd_model_checkpoint:
        profile = find_model(body.sd_model_checkpoint, services.catalog.list_profiles())
        await services.get(ModelChoices).choose(member.id, profile.name)
    return answer_json(None)
