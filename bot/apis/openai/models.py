"""`GET /v1/models`: the models that the visitor may use, as OpenAI's API lists its own."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from aiohttp import web

from bot.apis.openai.errors import FieldError
from bot.web.middleware import member_of
from bot.web.routes import answer_json
from bot.web.sse import SERVICES
from engine.contract import ModelProfile


class OpenAIModel(msgspec.Struct, frozen=True):
    """A model. Nobody notes when it was made, so `created` is 0."""

    id: str
    loaded: bool
    size: int
    steps: int
    samplers: Sequence[str]
    object: str = "model"
    created: int = 0
    owned_by: str = "darkroom"


class OpenAIModels(msgspec.Struct, frozen=True):
    """The models that can be asked for."""

    data: list[OpenAIModel]
    object: str = "list"


async def list_models(request: web.Request) -> web.Response:
    """Return the models that can be asked for."""
    models = [_describe_model(profile) for profile in await _load_profiles(request)]
    return answer_json(OpenAIModels(models))


async def get_model(request: web.Request) -> web.Response:
    """Return one model."""
    name = request.match_info["model"]
    for profile in await _load_profiles(request):
        if profile.name == name:
            return answer_json(_describe_model(profile))
    raise FieldError("model", f"The model {name[:64]!r} does not exist here.", status=404, code="model_not_found")


async def _load_profiles(request: web.Request) -> list[ModelProfile]:
    services = request.app[SERVICES]
    rules = await services.rule_admin.effective_rules(member_of(request))
    return [profile for profile in services.catalog.list_profiles() if rules.allows("models", profile.name)]


def _describe_model(profile: ModelProfile) -> OpenAIModel:
    return OpenAIModel(profile.name, profile.loaded, profile.size, profile.steps, profile.samplers)
