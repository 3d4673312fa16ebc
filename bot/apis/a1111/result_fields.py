"""Results in AUTOMATIC1111's form: `info` of pictures, and their parameters by name. Pure.

`/sdapi/v1/png-info` and `/interrogate`: how a picture was made, and which prompt fits it.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from aiohttp import web

from bot.apis.a1111.bodies import InterrogateBody, PictureBody
from bot.apis.a1111.listings import choose_profile
from bot.apis.a1111.names import name_sampler
from bot.domain.errors import UserError
from bot.domain.feature import PromptSuggester
from bot.jobs.init_images import InitImageLoader
from bot.web.media import wait_while_connected
from bot.web.middleware import member_of
from bot.web.request_body import decode_picture, read_picture_body
from bot.web.routes import answer_json
from bot.web.sse import SERVICES
from engine.contract import ImageToImage, Recipe, has_skipped_steps, noise_seed, recipe_for_image

NO_SUGGESTIONS = "This Darkroom suggests no prompts for pictures."

NEGATIVE_MARK = "Negative prompt:"
LEAST_FIELDS = 3  # of the line with the settings
_FIELD = re.compile(r'([A-Za-z][^:,"]{0,60}):\s*("(?:[^"\\]|\\.)*"|[^,]*)')


@dataclass(frozen=True)
class DrawnImage:
    """One picture of a request: its job's recipe, its index there, its size, and the parameters that its PNG holds."""

    recipe: Recipe
    index: int
    width: int
    height: int
    parameters: str

    @property
    def seed(self) -> int:
        """The seed of its noise."""
        return noise_seed(recipe_for_image(self.recipe, self.index), self.index)


def describe_images(images: Sequence[DrawnImage], prompt: str, batch_size: int, created: float) -> dict[str, Any]:
    """Return `info` of at least one picture: what it was drawn with. `created`: seconds since 1970."""
    recipe = images[0].recipe
    seeds = [image.seed for image in images]
    start = recipe.start if isinstance(recipe.start, ImageToImage) else None
    return {
        "prompt": prompt,
        "all_prompts": [prompt] * len(images),
        "negative_prompt": recipe.negative,
        "all_negative_prompts": [recipe.negative] * len(images),
        "seed": seeds[0],
        "all_seeds": seeds,
        "subseed": seeds[0],
        "all_subseeds": seeds,
        "subseed_strength": 0,
        "width": images[0].width,
        "height": images[0].height,
        "sampler_name": name_sampler(recipe.sampler),
        "cfg_scale": recipe.guidance,
        "steps": recipe.steps,
        "batch_size": batch_size,
        "restore_faces": False,
        "face_restoration_model": None,
        "sd_model_name": recipe.model,
        "sd_model_hash": recipe.revision[:10],
        "sd_vae_name": recipe.autoencoder.name if recipe.autoencoder else None,
        "sd_vae_hash": recipe.autoencoder.revision[:10] if recipe.autoencoder else None,
        "seed_resize_from_w": -1,
        "seed_resize_from_h": -1,
        "denoising_strength": start.strength if start else None,
        "extra_generation_params": {"Evaluations": recipe.evaluations} if has_skipped_steps(recipe) else {},
        "index_of_first_image": 0,
        "infotexts": [image.parameters for image in images],
        "styles": [],
        "job_timestamp": format_timestamp(created),
        "clip_skip": recipe.clip_skip + 1,
        "is_using_inpainting_conditioning": False,
        "version": "Darkroom",
    }


def format_timestamp(seconds: float) -> str:
    """Return a time (seconds since 1970) as AUTOMATIC1111 writes it, in UTC."""
    return time.strftime("%Y%m%d%H%M%S", time.gmtime(seconds))


def parse_parameters(text: str) -> dict[str, str]:
    """Return the fields of a picture's parameters by name, `Prompt` and `Negative prompt` among them; empty without."""
    *texts, settings = text.strip().splitlines() or [""]
    fields = {match[1].strip(): _unquote(match[2].strip()) for match in _FIELD.finditer(settings)}
    if len(fields) < LEAST_FIELDS:  # a prompt may have a colon, too
        texts = text.strip().splitlines()
        fields = {}
    prompt, _, negative = "\n".join(texts).partition(NEGATIVE_MARK)
    if not text.strip():
        return {}
    return {"Prompt": prompt.strip(), "Negative prompt": negative.strip(), **fields}


def _unquote(value: str) -> str:
    return value[1:-1].replace('\\"', '"') if len(value) >= 2 and value[0] == value[-1] == '"' else value


class WebuiParameters(msgspec.Struct, frozen=True):
    """The parameters that a picture carries: as text, and by their names."""

    info: str
    items: dict[str, str]
    parameters: dict[str, str]


class WebuiCaption(msgspec.Struct, frozen=True):
    """The prompt that fits a picture best."""

    caption: str


async def read_png_info(request: web.Request) -> web.Response:
    """Return the parameters that a picture carries: as text, and by their names. Empty for a picture without them."""
    async with read_picture_body(request, PictureBody) as body:
        loader = request.app[SERVICES].get(InitImageLoader)
        picture = await asyncio.to_thread(decode_picture, body.image)
        text = await loader.read_recipe_text(member_of(request), picture)
    items = {"parameters": text} if text else {}
    return answer_json(WebuiParameters(text, items, parse_parameters(text)))


async def interrogate(request: web.Request) -> web.Response:
    """Return the prompt with which the caller's model denoises a picture best, which takes seconds."""
    services = request.app[SERVICES]
    suggester = next(iter(services.list_all(PromptSuggester)), None)
    if suggester is None:
        raise UserError(NO_SUGGESTIONS, 404)
    async with read_picture_body(request, InterrogateBody) as body:
        picture = await asyncio.to_thread(decode_picture, body.image)
    del body
    member = member_of(request)
    profile = await choose_profile(services, member)
    prompts = await wait_while_connected(request, suggester.list_prompts(picture, member, profile.name))
    return answer_json(WebuiCaption(prompts[0] if prompts else ""))
