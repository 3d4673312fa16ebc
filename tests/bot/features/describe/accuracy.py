"""Measures `/describe` on pictures with a known prompt, with the embedded model and the engine in this process.

With PYTHONPATH=. run it by `.venv/bin/python tests/bot/features/describe/accuracy.py`, and add what it looks at:

    (nothing)            pictures of the model itself
    --artwork CACHE      real drawings: Twemoji, fetched into CACHE
    FILE …               any picture

It samples each prompt below once (30 steps of DPM++ 2M, upscaled like every finished picture). The artwork has the same
subjects on the same backgrounds. It prints the suggested prompts, and how often the first names the known subject and
the known background.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from bot.features.describe.rules import EMBEDDED_VOCABULARY
from bot.features.describe.service import PromptSearch, ScoredPrompt
from bot.jobs.model_catalog import SHIPPED_MODEL
from bot.pictures.image_codec import crop_square
from engine.batching import diffusion_classifier
from engine.batching.input_pictures import encode_square
from engine.contract import DescribeRequest
from engine.models.family import Family

ROWS = 16
# (subject, background, form of the prompt)
PROMPTS = (
    ("fox", "white", "{}, white background"),
    ("owl", "blue", "{}, blue background"),
    ("apple", "white", "red {}"),
    ("octopus", "white", "{}, white background"),
    ("guitar", "yellow", "{}, yellow background"),
    ("mushroom", "blue", "{}, blue background"),
    ("car", "white", "green {}, white background"),
    ("rocket", "black", "{}, black background"),
    ("cake", "pink", "{}, pink background"),
    ("rose", "white", "{}, 3d render"),
    ("penguin", "white", "a cute {}, white background"),
    ("sailboat", "orange", "{}, orange background"),
)


def sample_picture(family: Any, prompt: str, seed: int) -> Image.Image:
    """Samples one finished picture."""
    from training.diffusion.latent_sampling import build_input, initial_noise, sample_latents

    plan = family.plan("dpmpp_2m", 30, 0.0, family.size, family.size)
    start = initial_noise(family, seed)
    drawing = build_input(family, family.encode_text(prompt), family.guidance, start, family.interval)
    return family.finish(sample_latents(family, plan, [drawing])[0])


def to_png(picture: Image.Image) -> bytes:
    buffer = BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


async def answer_request(family: Family, request: DescribeRequest) -> Sequence[Sequence[float]]:
    """Answers a request as a worker does."""
    draws = diffusion_classifier.noise_image(
        family, encode_square(request.picture, family), request.first, request.draws
    )
    all_errors: list[float] = []
    for chunk in diffusion_classifier.split_rows(len(request.texts), request.draws, ROWS):
        all_errors += diffusion_classifier.prediction_errors(family, request.texts, draws, chunk, ROWS, "float32")
    return [all_errors[start : start + request.draws] for start in range(0, len(all_errors), request.draws)]


def suggest_prompts(family: Family, picture: Image.Image) -> tuple[int, tuple[ScoredPrompt, ...]]:
    """Returns how many texts were tried, and the suggested prompts."""
    search = PromptSearch(partial(answer_request, family), SHIPPED_MODEL, crop_square(to_png(picture), family.size))
    return asyncio.run(search.find_prompts(EMBEDDED_VOCABULARY))


@dataclass(frozen=True)
class Known:
    """A picture, its title, and what its first suggestion should name (empty: unknown)."""

    name: str
    subject: str
    background: str
    picture: Image.Image


def sample_all(family: Any) -> Iterator[Known]:
    """Pictures of the model itself."""
    for number, (subject, background, form) in enumerate(PROMPTS):
        prompt = form.format(subject)
        yield Known(prompt, subject, background, sample_picture(family, prompt, 7 + number))


def load_artwork(cache: Path) -> Iterator[Known]:
    """Drawings by people, in the style that is rarest in the model's training data."""
    from training.pictures.artwork import ARTWORK_PACKAGES, load

    names = {subject: background for subject, background, _ in PROMPTS}
    for art in load(cache, [one for one in ARTWORK_PACKAGES if one.style == "flat design"]):
        if background := names.pop(art.description.label.removeprefix("red "), ""):
            page = Image.new("RGBA", art.pixels.size, background)
            yield Known(
                art.description.label,
                art.description.label.split()[-1],
                background,
                Image.alpha_composite(page, art.pixels),
            )


def load_files(paths: Sequence[str]) -> Iterator[Known]:
    for path in paths:
        yield Known(Path(path).name, "", "", Image.open(path))


def matches(known_picture: Known, prompt: str) -> tuple[bool, bool]:
    """Whether a prompt names the subject, and the background. A prompt without one means white."""
    words = prompt.replace(",", "").split()
    background_matches = f"{known_picture.background} background" in prompt or (
        known_picture.background == "white" and "background" not in words
    )
    return known_picture.subject in words, background_matches


def main(args: Sequence[str]) -> None:
    from engine.models.families.embedded import load_embedded
    from engine.process.settings import load_settings
    from engine.upscaling.super_resolver import SuperResolver

    family = load_embedded(resolver=SuperResolver.load(load_settings().upscaler, torch.device("cpu")))
    pictures = (
        load_artwork(Path(args[1])) if args[:1] == ["--artwork"] else load_files(args) if args else sample_all(family)
    )
    hits: list[tuple[bool, bool]] = []
    for known_picture in pictures:
        started_at = time.monotonic()
        tried_texts, best_prompts = suggest_prompts(family, known_picture.picture.convert("RGB"))
        hits.append(matches(known_picture, best_prompts[0].prompt) if best_prompts else (False, False))
        summary = "; ".join(f"{one.prompt} ({one.error_reduction:.0%})" for one in best_prompts) or "nothing"
        print(
            f"{known_picture.name}  →  {summary}   [{tried_texts} texts, {time.monotonic() - started_at:.0f} s]",
            flush=True,
        )
    subject_hits, background_hits = (sum(each) for each in zip(*hits, strict=True))
    print(f"named first: the subject of {subject_hits}, the background of {background_hits}, of {len(hits)}")


if __name__ == "__main__":
    main(sys.argv[1:])
