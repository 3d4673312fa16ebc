"""Renders the pictures of `docs/steering.md`, and writes its table anew: `python docs/pictures/steer.py`.

Each picture begins as one prompt, and its words are changed to another after a share of the steps. Everything is drawn
by the engine with the embedded model, as a worker would; nothing is chosen by hand.
"""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import cast

import numpy as np
from PIL import Image

from bot.pictures.ladder_film import compose_side_by_side
from engine.contract import Amendment, BillingKey, Concept, Job, Recipe, Sampler, SetConcepts
from engine.models.families.embedded import load_embedded
from engine.models.family import Family
from engine.upscaling.super_resolver import SuperResolver
from engine.worker.local_run import run_locally

HERE = Path(__file__).parent
PAGE = HERE.parent / "steering.md"
FIRST = "fox, cute, white background"
SECOND = "terrier, cute, white background"
SHARES = (0.1, 0.4, 0.7)
SAMPLERS: tuple[Sampler, ...] = ("ddpm", "euler_ancestral", "ddim", "dpmpp_2m")
SHOWN_SAMPLER = SAMPLERS[0]
SHOWN_SHARE = SHARES[1]
STEPS = 40
COUNT = 3
SEED = 7
QUALITY = 82
TABLE = re.compile(r"(<!-- by docs/pictures/steer.py -->\n).*?(\n<!-- end -->)", re.DOTALL)

Pictures = list[bytes]  # PNGs of `COUNT` images
Key = tuple[Sampler, float]  # and after which share of the steps the words change: 0 is all terrier, 1 all fox


def draw(family: Family, sampler: Sampler, share: float) -> Pictures:
    """Draw pictures whose words change after a share of the steps."""
    recipe = Recipe(
        concepts=(Concept(SECOND if share == 0 else FIRST),),
        model=family.name,
        revision=family.revision,
        sampler=sampler,
        steps=STEPS,
        seed=SEED,
        guidance=family.guidance,
        width=family.size,
        height=family.size,
        count=COUNT,
        dtype="float32",
        guidance_start=family.interval[0],
        guidance_stop=family.interval[1],
        amendments=() if share in (0, 1) else (Amendment(1, round(share * STEPS), SetConcepts((Concept(SECOND),))),),
    )
    owner = BillingKey("docs", "docs", "docs")
    return run_locally(
        Job(id="0" * 26, task=recipe, billing_key=owner, cost=1.0, deadline=4e9), {family.name: family}
    ).pictures


def draw_all() -> dict[Key, Pictures]:
    family = cast("Family", load_embedded(resolver=SuperResolver.load(None)))
    return {(sampler, share): draw(family, sampler, share) for sampler in SAMPLERS for share in (0, *SHARES, 1)}


def measure_way(first: bytes, second: bytes, steered: bytes) -> float:
    """Return how far a steered picture came from the first to the second: 1 - |steered - second| / |first - second|."""
    start, target, picture = (
        np.asarray(Image.open(io.BytesIO(each)).convert("RGB"), dtype=np.float64) for each in (first, second, steered)
    )
    return 1 - float(np.linalg.norm(picture - target) / np.linalg.norm(start - target))


def format_table(drawn: dict[Key, Pictures]) -> str:
    lines = ["| sampler | " + " | ".join(f"changed at {share:.0%}" for share in SHARES) + " |", "|---|---|---|---|"]
    for sampler in SAMPLERS:
        ways = [
            np.mean(
                [
                    measure_way(*each)
                    for each in zip(drawn[sampler, 1], drawn[sampler, 0], drawn[sampler, share], strict=True)
                ]
            )
            for share in SHARES
        ]
        lines.append(f"| `{sampler}` | " + " | ".join(f"{way:.0%}" for way in ways) + " |")
    return "\n".join(lines)


def save_strip(name: str, pictures: Pictures, labels: list[str]) -> None:
    with Image.open(io.BytesIO(compose_side_by_side(pictures, labels))) as made:
        made.save(HERE / f"{name}.webp", quality=QUALITY, method=6)


def main() -> None:
    drawn = draw_all()
    shares = (1, *reversed(SHARES))
    labels = ["never", *(f"after {share:.0%}" for share in reversed(SHARES))]
    save_strip("steer-when", [drawn[SHOWN_SAMPLER, share][0] for share in shares], labels)
    save_strip("steer-samplers", [drawn[sampler, SHOWN_SHARE][0] for sampler in SAMPLERS], list(SAMPLERS))
    PAGE.write_text(TABLE.sub(lambda found: found[1] + format_table(drawn) + found[2], PAGE.read_text()))


if __name__ == "__main__":
    main()
