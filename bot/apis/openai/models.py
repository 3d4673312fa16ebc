"""`GET /v1/models`: the models that the visitor may use, as OpenAI's API lists its own."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from bot.apis.openai.errors import FieldError
from bot.web.middleware import member_of
from bot.web.sse import SERVICES
from engine.contract import ModelProfile


async def list_models(request: web.Request) -> web.Response:
    """Return the models that can be asked for."""
    models = [_describe_model(profile) for profile in await _load_profiles(request)]
    return web.json_response({"object": "list", "data": models})


async def get_model(request: web.Request) -> web.Response:
    """Return one model."""
    name = request.match_info["model"]
    for profile in await _load_profiles(request):
        if profile.name == name:
            return web.json_response(_describe_model(profile))
    raise FieldError("model", f"The model {name[:64]!r} does not exist here.", status=404, code="model_not_found")


async def _load_profiles(request: web.Request) -> list[ModelProfile]:
    services = request.app[SERVICES]
    rules = await services.rule_admin.effective_rules(member_of(request))
    return [profile for profile in services.catalog.list_profiles() if rules.allows("models", profile.name)]


def _describe_model(profile: ModelProfile) -> dict[str, Any]:
    """Return a model. Nobody notes when it was made, so `created` is 0."""
    return {
        "id": profile.name,
        "object": "model",
        "created": 0,
        "owned_by": "darkroom",
        "loaded": profile.loaded,
        "size": profile.size,
        "steps": profile.steps,
        "samplers": list(profile.samplers),
    }
