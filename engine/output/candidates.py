"""The choice among a job's candidates: those that the judge finds nearest to the prompt are its pictures. Pure.

DALL·E chose among its samples in this way, with CLIP (Ramesh et al. 2021, arXiv 2102.12092, section 2.6).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from msgspec.structs import replace

from engine.batching.events import LatentsDone
from engine.contract import Job, Recipe, recipe_at_end
from engine.prompt.emphasis import strip_emphasis


def choose_candidates(
    job: Job, candidates: Sequence[LatentsDone], scores: Sequence[float]
) -> tuple[Job, list[LatentsDone]]:
    """Return the job with the candidates of the highest scores, best first, and their latents as its pictures.

    Of equal scores the lower candidate wins.
    """
    recipe = job.task
    assert isinstance(recipe, Recipe), "only a recipe has candidates"
    ranking = sorted(zip(scores, candidates, strict=True), key=lambda pair: (-pair[0], pair[1].image))
    chosen = [candidate for _, candidate in ranking[: recipe.count]]
    indices = tuple(candidate.image for candidate in chosen)
    pictures = [dataclasses.replace(candidate, image=image) for image, candidate in enumerate(chosen)]
    return replace(job, task=replace(recipe, chosen_candidates=indices)), pictures


def join_concepts(recipe: Recipe) -> str:
    """Return the plain text that pictures are compared with: the concepts of positive weight, without emphasis.

    Of a steered job they are those of its last step.
    """
    concepts = recipe_at_end(recipe).concepts
    texts = (strip_emphasis(concept.text).strip() for concept in concepts if concept.weight > 0)
    return ", ".join(text for text in texts if text)
