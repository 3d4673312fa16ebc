"""How well `/describe` does on pictures whose words are known: drawn by the embedded model itself, then described.

    PYTHONPATH=. .venv/bin/python tests/described.py [PROMPT …]

Each prompt is drawn once (30 steps of DPM++ 2M, enlarged as every finished picture is), and described as `/describe`
does, with the engine in this process in place of a worker's. Printed: the four prompts that were found, and how often
the first of them names the subject, and the background, that were asked for.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Sequence
from functools import partial
from io import BytesIO
from typing import Any

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


def main(words: Sequence[str]) -> None:
    from engine.config import upscaler
    from engine.families.embedded import load_embedded
    from engine.super_resolver import SuperResolver

    family = load_embedded(resolver=SuperResolver.find(upscaler(), "cpu"))
    wanted = [("", "", one) for one in words] or PROMPTS
    first = among = behind = 0
    for number, (subject, background, form) in enumerate(wanted):
        prompt, began = form.format(subject), time.monotonic()
        tried, found = described(family, drawn(family, prompt, 7 + number))
        named = [subject in one.prompt.replace(",", "").split() for one in found]
        first, among = first + (named[:1] == [True]), among + any(named)
        behind += bool(found) and (f"{background} background" in found[0].prompt)
        said = "; ".join(f"{one.prompt} ({one.gain:.0%})" for one in found)
        print(f"{prompt}  →  {said}   [{tried} texts, {time.monotonic() - began:.0f} s]", flush=True)
    if not words:
        print(f"subject first {first}, among four {among}, background {behind}, of {len(wanted)}")


if __name__ == "__main__":
    main(sys.argv[1:])
