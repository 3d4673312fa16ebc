"""What each handler of a route reads and answers: its shape, of which `bot.web.api.openapi` makes the description."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from bot.pictures.animation import FILM_FORMATS, MEDIA_TYPES
from bot.web import media, metrics, pages, sse
from bot.web.api import edits, jobs, review, steering, wait_reason
from bot.web.routes import Shape

FILMS = tuple(MEDIA_TYPES[kind] for kind in FILM_FORMATS)


def _accepts(body: type[msgspec.Struct] | None = None, *files: str) -> Shape:
    return Shape("Accepted", 201, body, files)


def _file(*types: str) -> Shape:
    return Shape(content=types)


SHAPES: Mapping[Callable[..., Any], Shape] = {
    pages.get_home: _file("text/html"),
    pages.get_discord_page: _file("text/html"),
    pages.redirect_icon: Shape(status=302, content=()),
    pages.sign_in: Shape("Path", body=pages.SignInBody),
    metrics.get_metrics: _file("text/plain"),
    metrics.list_rejections: Shape("Rejections"),
    jobs.healthz: Shape("Health"),
    jobs.get_workers: Shape("Workers"),
    jobs.create_invitation: Shape("Path", 201, jobs.InvitationBody, is_optional=True),
    jobs.list_jobs: Shape("Jobs"),
    jobs.create_jobs: _accepts(jobs.JobBody, "picture", "mask", "control", "reference"),
    jobs.get_job: Shape("Job"),
    jobs.cancel_job: Shape("Sentence"),
    jobs.pause_job: Shape("Sentence"),
    jobs.resume_job: Shape("Sentence"),
    jobs.set_priority: Shape("Sentence", body=jobs.PriorityBody),
    jobs.vary: _accepts(),
    jobs.upscale: _accepts(),
    jobs.reroll: _accepts(),
    jobs.finish: _accepts(),
    jobs.interpolate: _accepts(),
    edits.edit: _accepts(edits.EditBody, "mask"),
    edits.zoom: _accepts(edits.ZoomBody),
    edits.pan: _accepts(edits.PanBody),
    edits.branch: _accepts(edits.BranchBody),
    edits.list_steps: Shape("Steps"),
    steering.amend: Shape("Amendments", 202, steering.AmendBody),
    steering.list_amendments: Shape("Amendments"),
    wait_reason.get_wait_reason: Shape("WaitReason"),
    review.get_held_picture: _file("image/png"),
    review.show_picture: Shape("Job"),
    review.hide_picture: Shape("Job"),
    media.get_picture: _file("image/png"),
    media.get_grid: _file("image/png"),
    media.get_film: _file(*FILMS),
    media.get_interpolation_film: _file(*FILMS),
    media.get_dissolve_film: _file(*FILMS),
    media.get_return_film: _file(*FILMS),
    media.list_keyframes: Shape("Keyframes"),
    media.get_keyframe: _file("image/webp"),
    sse.stream_events: _file("text/event-stream"),
    sse.stream_job_events: _file("text/event-stream"),
}
