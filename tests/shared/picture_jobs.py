"""Shared by the tests of pictures beside the prompt: jobs with their blobs, run alone or together."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image, ImageDraw

from engine.batching.engine import Engine, JobFailure, LatentsDone
from engine.contract import Job
from engine.models.family import Family
from shared.init_image_jobs import Blobs, add_job
from shared.picture_files import encode_picture

Results = dict[tuple[str, int], torch.Tensor]


def draw_reference(colour: str, size: tuple[int, int] = (48, 40)) -> Image.Image:
    """A cross on a coloured ground, wider than high."""
    picture = Image.new("RGB", size, colour)
    draw = ImageDraw.Draw(picture)
    draw.line((0, 0, *size), fill="white", width=5)
    draw.line((0, size[1], size[0], 0), fill="black", width=3)
    return picture


def store_pictures(*pictures: Image.Image) -> tuple[list[str], dict[str, bytes]]:
    """Return the SHA-256 of each picture as a PNG, and the blobs."""
    contents = [encode_picture(picture) for picture in pictures]
    names = [hashlib.sha256(content).hexdigest() for content in contents]
    return names, dict(zip(names, contents, strict=True))


def run_engine(engine: Engine, results: Results, steps: int = 10_000) -> Results:
    """Run until it is idle, or for some steps; add the finished latents to `results`."""
    for _ in range(steps):
        if engine.is_idle:
            break
        for event in engine.step():
            assert not isinstance(event, JobFailure), event
            if isinstance(event, LatentsDone):
                results[event.job, event.image] = event.latents
    return results


def run_picture_jobs(jobs: Sequence[Job], blobs: Blobs, family: Family, **options: Any) -> Results:
    """Run the jobs together."""
    engine = Engine({family.name: family}, **options)
    for job in jobs:
        add_job(engine, job, blobs, family)
    return run_engine(engine, {})
