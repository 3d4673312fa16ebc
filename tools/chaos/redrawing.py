"""`python -m tools.chaos.redrawing ENGINE`: draws recipes anew, from the start, one by one on an engine of its own.

The standard input has recipes as JSON, job → hexadecimal text of its wire format. The answer on the standard output:
job → the SHA-256 of each picture's pixels, in the order of the images.
"""

from __future__ import annotations

import hashlib
import io
import json
import sys
from typing import Any

from PIL import Image

from engine.contract import BillingKey, Job, Recipe, decode

DEADLINE = 4e9  # far in the future


def hash_pixels(content: bytes) -> str:
    """Returns the SHA-256 of a picture's pixels."""
    with Image.open(io.BytesIO(content)) as picture:
        return hashlib.sha256(picture.convert("RGB").tobytes()).hexdigest()


def draw_recipe(number: int, recipe: Recipe, engine: str) -> list[str]:
    """Draws a recipe, and returns the hash of each of its pictures."""
    from engine.worker.local_run import run_locally  # torch, which only the process that draws imports

    job = Job(id=f"{number:026d}", task=recipe, billing_key=BillingKey("t", "g", "u"), cost=1.0, deadline=DEADLINE)
    return [hash_pixels(each) for each in run_locally(job, {recipe.model: _load_family(engine)}).pictures]


def _load_family(engine: str) -> Any:
    from engine.models.families.embedded import load_embedded
    from engine.upscaling.super_resolver import SuperResolver
    from engine.worker.simulated_model import SimulatedModel

    return SimulatedModel(0.0) if engine == "simulated" else load_embedded(resolver=SuperResolver.load(None))


def main() -> None:
    recipes = {job: decode(bytes.fromhex(text), Recipe) for job, text in json.load(sys.stdin).items()}
    digests = {job: draw_recipe(number, recipe, sys.argv[1]) for number, (job, recipe) in enumerate(recipes.items())}
    json.dump(digests, sys.stdout)


if __name__ == "__main__":
    main()
