"""`ParsedPrompt`: what one prompt asks for, and the recipe that it becomes for a known model."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from bot.domain.errors import UserError
from bot.prompt.capability_check import check_capabilities, choose_interval
from bot.prompt.concepts import EMPTY_CONCEPT, balance_weights
from bot.prompt.model_parts import choose_embeddings, resolve_autoencoder
from bot.prompt.part_flags import RequestedControl, RequestedLora, RequestedReference, merge_loras, resolve_loras
from engine.contract import (
    DRAFT_EVALUATIONS,
    MAX_COUNT,
    MAX_STEPS,
    PIPELINE_SAMPLERS,
    TURBO_GUIDANCE,
    TURBO_LORA,
    TURBO_SAMPLER,
    TURBO_STEPS,
    Concept,
    Lora,
    ModelProfile,
    Recipe,
    Sampler,
    count_usual_evaluations,
    find_turbo,
    has_style,
)
from engine.prompt.style_guide import StyleGuide

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

CANDIDATES_PER_PICTURE = 2  # with `best`
FAST_STEPS = 30
FAST_SAMPLER: Sampler = "dpmpp_2m"
FULL_CHAIN_SAMPLERS: tuple[Sampler, ...] = ("ddpm", "ddim")  # all steps are worth having; others are good in few
AUTO_EVALUATIONS = -1  # as many as usual, also where a remix would keep those of its parent
DEFAULT_FRAMES = 12  # of an interpolation
MAX_RATIO = 4
SIDE_RANGE = (16, 4096)  # pixels, as `engine.contract.Side`


@dataclass(frozen=True)
class ParsedPrompt:
    """One prompt, parsed and in range. None means: the model's default, or for the seed, a random one.

    `concepts` carry the weights as written; `ar` is width : height. `interval` is where guidance begins and ends,
    as fractions of the steps. `loras`, `controls` and `references` are None if none is named, empty to remove them;
    `autoencoder` likewise, with "none". `clip_skip` counts CLIP's layers from the end, as AUTOMATIC1111 does: 1 is
    all of them. `text` is the cleaned prompt of this job, with its flags; `words` the same without them. `best`:
    the judge chooses among twice as many pictures; None if neither asked for nor declined. `relaxed` is a tier of
    the queue and changes no pixel. `evaluations` is 0 for all steps; `draft` is few of them. `strength` is that of
    init images, `stop_at` a fraction of the steps, `quality` a factor on the usual ones. With `edit` the words say
    how the init image is changed. `walk` is the prompt at the end of an interpolation, empty for none; its `frames`
    are pictures, in as many jobs as they need. `raw`: without the model's styles.
    """

    concepts: tuple[Concept, ...]
    negative: str = ""
    steps: int | None = None
    evaluations: int | None = None
    draft: bool = False
    seed: int | None = None
    guidance: float | None = None
    interval: tuple[float, float] | None = None
    ar: tuple[int, int] | None = None
    model: str | None = None
    sampler: Sampler | None = None
    loras: tuple[RequestedLora, ...] | None = None
    controls: tuple[RequestedControl, ...] | None = None
    references: tuple[RequestedReference, ...] | None = None
    autoencoder: str | None = None
    clip_skip: int | None = None
    count: int | None = None
    best: bool | None = None
    fast: bool = False
    turbo: bool = False
    relaxed: bool = False
    eta: float = 0.0
    strength: float | None = None
    edit: bool = False
    stop_at: float | None = None
    tile: bool = False
    mix: bool = False
    chaos: float = 0.0
    raw: bool = False
    repeat: int = 1
    quality: float = 1.0
    end_prompt: str = ""
    frames: int = DEFAULT_FRAMES
    text: str = ""
    words: str = ""

    @property
    def read_texts(self) -> tuple[str, ...]:
        """The texts that a text encoder reads."""
        return (*(concept.text for concept in self.concepts), self.negative, self.end_prompt)


def build_recipe(
    parsed_prompt: ParsedPrompt,
    model_profile: ModelProfile,
    seed: int,
    *,
    bucket: int | None = None,
    style_guide: StyleGuide | None = None,
) -> Recipe:
    """Return everything that decides pixels, but for pictures. `seed` applies if the prompt names none.

    Raises `UserError` if the model lacks the shape or a feature. Members cannot set `bucket`.
    """
    parsed_prompt = expand_turbo(parsed_prompt, model_profile)
    width, height = fit_size(parsed_prompt.ar or (1, 1), model_profile)
    sampler, steps = choose_sampling(parsed_prompt, model_profile)
    default_interval = model_profile.guidance_start, model_profile.guidance_stop
    start, stop = choose_interval(parsed_prompt.interval, default_interval, sampler, model_profile)
    recipe = Recipe(
        concepts=balance_weights(parsed_prompt.concepts),
        negative=parsed_prompt.negative,
        styles=choose_styles(parsed_prompt, style_guide),
        model=model_profile.name,
        revision=model_profile.revision,
        sampler=sampler,
        steps=steps,
        evaluations=choose_evaluations(parsed_prompt, sampler, steps, model_profile),
        eta=parsed_prompt.eta,
        seed=seed if parsed_prompt.seed is None else parsed_prompt.seed,
        guidance=choose_guidance(parsed_prompt, model_profile.guidance),
        width=width,
        height=height,
        count=parsed_prompt.count or MAX_COUNT,
        candidate_count=_count_candidates(parsed_prompt),
        dtype=model_profile.dtype,
        bucket=bucket,
        guidance_start=start,
        guidance_stop=stop,
        guidance_kind=model_profile.guidance_kind,
        stop_at=1.0 if parsed_prompt.stop_at is None else parsed_prompt.stop_at,
        tile=parsed_prompt.tile,
        mixed=parsed_prompt.mix and len(parsed_prompt.concepts) > 1,
        chaos=parsed_prompt.chaos,
        **_choose_parts(parsed_prompt, model_profile),
    )
    check_capabilities(recipe, model_profile)
    return recipe


def _choose_parts(parsed_prompt: ParsedPrompt, model_profile: ModelProfile) -> dict[str, Any]:
    """Return the recipe's parts of the model, besides its network. Raises `UserError` for one that it lacks."""
    return {
        "loras": resolve_loras(parsed_prompt.loras or (), model_profile),
        "quantization": model_profile.quantization,
        "embeddings": choose_embeddings(parsed_prompt.read_texts, model_profile),
        "autoencoder": resolve_autoencoder(parsed_prompt.autoencoder, model_profile),
        "clip_skip": count_left_out_layers(parsed_prompt.clip_skip),
    }


def choose_styles(parsed_prompt: ParsedPrompt, style_guide: StyleGuide | None) -> tuple[str, ...]:
    """Return the styles that the pictures take in turn; none where the prompt leaves no style open."""
    if style_guide is None or not is_style_open(parsed_prompt):
        return ()
    return style_guide.choose_styles(parsed_prompt.concepts[0].text)


def is_style_open(parsed_prompt: ParsedPrompt) -> bool:
    """Whether neither words nor a LoRA nor a reference say what the pictures look like.

    Raw prompts, walks and several concepts leave no style open.
    """
    text, *further = (concept.text for concept in parsed_prompt.concepts)
    if parsed_prompt.raw or parsed_prompt.end_prompt or parsed_prompt.references or further:
        return False
    has_other_lora = any(lora.name != TURBO_LORA for lora in parsed_prompt.loras or ())
    return not (has_other_lora or has_style(text) or has_style(parsed_prompt.negative))


def count_left_out_layers(clip_skip: int | None) -> int:
    """Return how many last layers of CLIP are left out, as diffusers counts them: AUTOMATIC1111 counts from 1."""
    return (clip_skip or 1) - 1


def expand_turbo(
    parsed_prompt: ParsedPrompt, model_profile: ModelProfile, kept_loras: Iterable[Lora] = ()
) -> ParsedPrompt:
    """Return the prompt with what --turbo stands for; its own flags win. Without a turbo LoRA nothing changes.

    A prompt that names no LoRAs keeps `kept_loras` beside that of turbo.
    """
    if not parsed_prompt.turbo or find_turbo(model_profile) is None:
        return parsed_prompt
    loras = parsed_prompt.loras
    if loras is None:
        loras = tuple(RequestedLora(lora.name, lora.weight) for lora in kept_loras)
    return replace(
        parsed_prompt,
        turbo=False,
        sampler=parsed_prompt.sampler or TURBO_SAMPLER,
        steps=parsed_prompt.steps or max(1, round(TURBO_STEPS * parsed_prompt.quality)),
        guidance=TURBO_GUIDANCE if parsed_prompt.guidance is None else parsed_prompt.guidance,
        loras=merge_loras([RequestedLora(TURBO_LORA), *loras]),
    )


def _count_candidates(parsed_prompt: ParsedPrompt) -> int:
    """Return how many candidates the judge chooses from; 0 without a choice. A walk shows all of its pictures."""
    if not parsed_prompt.best or parsed_prompt.end_prompt:
        return 0
    return CANDIDATES_PER_PICTURE * (parsed_prompt.count or MAX_COUNT)


def choose_guidance(parsed_prompt: ParsedPrompt, default_guidance: float) -> float:
    """Return the requested guidance, else the usual; 1 without words, which need no guidance and save a row."""
    if parsed_prompt.concepts == (EMPTY_CONCEPT,):
        return 1.0
    return default_guidance if parsed_prompt.guidance is None else parsed_prompt.guidance


def choose_sampling(parsed_prompt: ParsedPrompt, model_profile: ModelProfile) -> tuple[Sampler, int]:
    """Return sampler and steps. A model without the fast sampler, or made for few steps, keeps its own sampler."""
    sampler = model_profile.sampler
    steps = model_profile.steps
    if parsed_prompt.fast and FAST_SAMPLER in model_profile.samplers and model_profile.steps > FAST_STEPS:
        sampler = FAST_SAMPLER
        steps = FAST_STEPS
    elif parsed_prompt.fast:
        steps = min(FAST_STEPS, model_profile.steps)
    return parsed_prompt.sampler or sampler, parsed_prompt.steps or min(
        MAX_STEPS, max(1, round(steps * parsed_prompt.quality))
    )


def choose_evaluations(
    parsed_prompt: ParsedPrompt, sampler: Sampler, steps: int, model_profile: ModelProfile, kept: int | None = None
) -> int:
    """Return at how many of the steps the network is evaluated; 0: at all of them. `kept`: unless the prompt says.

    By itself nothing skips an evaluation where the sampler or the model cannot. The `quality` counts for the usual
    number as for the usual steps.
    """
    count = parsed_prompt.evaluations
    if count is None and parsed_prompt.draft:
        count = DRAFT_EVALUATIONS
    if count is None:
        count = kept
    if count is None or count == AUTO_EVALUATIONS:
        is_possible = sampler not in PIPELINE_SAMPLERS and "evaluations" not in model_profile.lacks
        quality = parsed_prompt.quality if parsed_prompt.steps is None else 1.0
        count = round(quality * count_usual_evaluations(sampler, steps)) if is_possible else 0
    return count if count < steps else 0


def fit_size(ar: tuple[int, int], model_profile: ModelProfile) -> tuple[int, int]:
    """Return width and height in pixels near `ar` and the model's native area, in its multiples and within its pixels.

    Raises `UserError` if no such size exists.
    """
    if (
        ar[0] == ar[1]
        and not model_profile.size % model_profile.multiple
        and model_profile.size**2 <= model_profile.max_pixels
    ):
        return model_profile.size, model_profile.size
    ratio = ar[0] / ar[1]
    sizes = [
        (_size_deviation(w, h, ratio, model_profile.size), w, h) for w, h in _candidate_sizes(ratio, model_profile)
    ]
    if not sizes:
        raise UserError(f"{model_profile.name} cannot draw in the shape --ar {ar[0]}:{ar[1]}.")
    _, width, height = min(sizes)
    return width, height


def _candidate_sizes(ratio: float, model_profile: ModelProfile) -> Iterator[tuple[int, int]]:
    """Yield, for each width in the model's multiples, the height nearest to the ratio."""
    unit = model_profile.multiple
    smallest = math.ceil(SIDE_RANGE[0] / unit) * unit
    for width in range(smallest, min(SIDE_RANGE[1], 4 * model_profile.size) + 1, unit):
        height = max(smallest, round(width / ratio / unit) * unit)
        if height <= SIDE_RANGE[1] and width * height <= model_profile.max_pixels:
            yield width, height


def _size_deviation(width: int, height: int, ratio: float, size: int) -> float:
    """Return the deviation in shape and area, in octaves: half and double weigh the same. Shape counts twice."""
    return 2 * abs(math.log2(width / height / ratio)) + abs(math.log2(width * height / size**2))
