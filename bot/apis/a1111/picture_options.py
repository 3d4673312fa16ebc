"""A request of AUTOMATIC1111's API as a prompt with options, as `JobService.imagine` takes them. Pure.

What it cannot mean here is refused with a sentence, if the picture would not be what was asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from bot.apis.a1111.bodies import ImageToImageBody, OptionsBody, TextToImageBody
from bot.apis.a1111.control_units import UnitPictures
from bot.apis.a1111.names import choose_sampler
from bot.domain.errors import UserError
from bot.domain.texts import shorten
from bot.prompt.permutations import MAX_JOBS, escape_braces
from engine.contract import MAX_COUNT

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from engine.contract import ModelProfile

MAX_PICTURES = MAX_JOBS * MAX_COUNT  # of one request
RANDOM_SEED = -1
NO_UNIT_PICTURES = UnitPictures()
OWN_AUTOENCODERS = ("", "automatic", "none")  # `sd_vae`: the model's own


@dataclass(frozen=True)
class PictureOptions:
    """A prompt in Darkroom's grammar, and the options that override its flags."""

    prompt: str
    options: Mapping[str, object]


def make_picture_options(
    body: TextToImageBody, profile: ModelProfile, drawn_seed: int, unit_pictures: UnitPictures = NO_UNIT_PICTURES
) -> PictureOptions:
    """Return the prompt and options of a request. `profile`: its model; `drawn_seed`: for a request without a seed;
    `unit_pictures`: what it names beside the prompt.

    More pictures than a job draws are several jobs, admitted all or none: the seeds count on. Raises `UserError`.
    """
    _refuse_unmapped(body)
    seed = drawn_seed if body.seed in (None, RANDOM_SEED) else body.seed
    count = count_pictures(body)
    settings = body.override_settings or OptionsBody()
    options: dict[str, object] = {
        "model": profile.name,
        "negative": body.negative_prompt or None if profile.guidance_kind == "rows" else None,
        "steps": body.steps,
        "evaluations": body.evaluations,
        "guidance": body.cfg_scale,
        "sampler": choose_sampler(body.sampler_name or body.sampler_index or "", body.scheduler or "", profile),
        "ar": (body.width, body.height) if body.width and body.height else None,
        "tile": body.tiling or None,
        "vae": None if (settings.sd_vae or "").lower() in OWN_AUTOENCODERS else settings.sd_vae,
        "clip_skip": settings.CLIP_stop_at_last_layers,
        "control": unit_pictures.controls or None,
        "reference": unit_pictures.references or None,
        "strength": body.denoising_strength if isinstance(body, ImageToImageBody) else None,
    }
    prompt = escape_braces(body.prompt or "")
    if count <= MAX_COUNT:
        options |= {"seed": seed, "count": count}
    else:
        prompt = f"{prompt} {{{','.join(_list_job_flags(seed or 0, count))}}}"
    return PictureOptions(prompt, {name: value for name, value in options.items() if value is not None})


def count_pictures(body: TextToImageBody) -> int:
    """Return how many pictures a request asks for. Raises `UserError` for too many."""
    count = (body.n_iter or 1) * (body.batch_size or 1)
    if count > MAX_PICTURES:
        raise UserError(f"n_iter × batch_size is {count}: one request draws at most {MAX_PICTURES} pictures.")
    return count


def _list_job_flags(seed: int, count: int) -> Iterator[str]:
    """Yield the flags of each job: its first seed, and its number of pictures."""
    for first in range(0, count, MAX_COUNT):
        yield f"--seed {seed + first} --count {min(MAX_COUNT, count - first)}"


def _refuse_unmapped(body: TextToImageBody) -> None:
    """Raise `UserError` for what has no counterpart here and would make another picture."""
    if body.script_name:
        raise UserError(f"Script “{shorten(body.script_name, 60)}” not found: Darkroom runs no scripts but ControlNet.")
    unmapped = {
        "enable_hr": (body.enable_hr, "enlarge the finished picture by /sdapi/v1/extra-single-image"),
        "restore_faces": (body.restore_faces, "leave it out"),
        "styles": (body.styles, "write their words into the prompt"),
        "subseed_strength": (body.subseed_strength, "vary a finished picture on the page or in Discord"),
    }
    for name, (value, advice) in unmapped.items():
        if value:
            raise UserError(f"{name} has no counterpart in Darkroom: {advice}.")
