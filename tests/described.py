"""How well `/describe` does on pictures whose words are known, with the embedded model and the engine in this process.

    PYTHONPATH=. .venv/bin/python tests/described.py                    # drawn by the model itself
    PYTHONPATH=. .venv/bin/python tests/described.py --artwork CACHE    # real drawings: Twemoji, fetched into CACHE
    PYTHONPATH=. .venv/bin/python tests/described.py FILE …             # any picture

Each prompt below is drawn once (30 steps of DPM++ 2M, enlarged as every finished picture is); of the artwork the same
subjects are taken, on the same backgrounds. Printed: the prompts that were found, and how often the first of them names
the subject, and the background, that are known.
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

from bot.desk.describing import Search, Worded
from bot.images.square import square
from bot.models import SHIPPED
from bot.prompt.vocabulary import LEARNED
from engine import describing
from engine.beginning import whole
from engine.families.family import Family
from engine.job import DescribeRequest

ROWS = 16
# (subject, background, and what else is asked for)
PROMPTS = (
    ("fox", "white", "{}, white background"), ("owl", "blue", "{}, blue background"), ("apple", "white", "red {}"),
    ("octopus", "white", "{}, white background"), ("guitar", "yellow", "{}, yellow background"),
    ("mushroom", "blue", "{}, blue background"), ("car", "white", "green {}, white background"),
    ("rocket", "black", "{}, black background"), ("cake", "pink", "{}, pink background"),
    ("rose", "white", "{}, 3d render"), ("penguin", "white", "a cute {}, white background"),
    ("sailboat", "orange", "{}, orange background"),
)  # fmt: skip


def drawn(family: Any, prompt: str, seed: int) -> Image.Image:
    """One finished picture."""
    from engine.sampling import develop, drawing_of, initial

    plan = family.plan("dpmpp_2m", 30, 0.0, family.size, family.size)
    start = initial(family, seed)
    drawing = drawing_of(family, family.encode(prompt), family.guidance, start, family.interval)
    return family.finish(develop(family, plan, [drawing])[0])


def png(picture: Image.Image) -> bytes:
    out = BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()


async def asked(family: Family, request: DescribeRequest) -> Sequence[Sequence[float]]:
    """What a worker would answer."""
    draws = describing.draws(family, whole(request.picture, family), request.first, request.draws)
    found: list[float] = []
    for chunk in describing.chunks(len(request.texts), request.draws, ROWS):
        found += describing.errors(family, request.texts, draws, chunk, ROWS, "float32")
    return [found[at : at + request.draws] for at in range(0, len(found), request.draws)]


def described(family: Family, picture: Image.Image) -> tuple[int, tuple[Worded, ...]]:
    """How many texts were tried, and the prompts that were found."""
    search = Search(partial(asked, family), SHIPPED, square(png(picture), family.size))
    return asyncio.run(search.found(LEARNED))


@dataclass(frozen=True)
class Known:
    """A picture, what it is called, and what its first prompt should name; empty: nobody knows."""

    called: str
    subject: str
    background: str
    picture: Image.Image


def own(family: Any) -> Iterator[Known]:
    """Drawn by the model."""
    for number, (subject, background, form) in enumerate(PROMPTS):
        prompt = form.format(subject)
        yield Known(prompt, subject, background, drawn(family, prompt, 7 + number))


def artwork(cache: Path) -> Iterator[Known]:
    """Drawn by people: one style, which the model has seen least of."""
    from engine.training.pictures.artwork import SETS, load

    names = {subject: background for subject, background, _ in PROMPTS}
    for art in load(cache, [one for one in SETS if one.style == "flat design"]):
        if background := names.pop(art.words.label.removeprefix("red "), ""):
            page = Image.new("RGBA", art.pixels.size, background)
            yield Known(
                art.words.label, art.words.label.split()[-1], background, Image.alpha_composite(page, art.pixels)
            )


def files(paths: Sequence[str]) -> Iterator[Known]:
    for path in paths:
        yield Known(Path(path).name, "", "", Image.open(path))


def right(known: Known, prompt: str) -> tuple[bool, bool]:
    """Whether a prompt names the subject, and the background; none named means white."""
    named = prompt.replace(",", "").split()
    behind = f"{known.background} background" in prompt or (known.background == "white" and "background" not in named)
    return known.subject in named, behind


def main(words: Sequence[str]) -> None:
    from engine.config import upscaler
    from engine.families.embedded import load_embedded
    from engine.super_resolver import SuperResolver

    family = load_embedded(resolver=SuperResolver.find(upscaler(), torch.device("cpu")))
    pictures = artwork(Path(words[1])) if words[:1] == ["--artwork"] else files(words) if words else own(family)
    found: list[tuple[bool, bool]] = []
    for known in pictures:
        began = time.monotonic()
        tried, best = described(family, known.picture.convert("RGB"))
        found.append(right(known, best[0].prompt) if best else (False, False))
        said = "; ".join(f"{one.prompt} ({one.gain:.0%})" for one in best) or "nothing"
        print(f"{known.called}  →  {said}   [{tried} texts, {time.monotonic() - began:.0f} s]", flush=True)
    subjects, backgrounds = (sum(each) for each in zip(*found, strict=True))
    print(f"named first: the subject of {subjects}, the background of {backgrounds}, of {len(found)}")


if __name__ == "__main__":
    main(sys.argv[1:])
