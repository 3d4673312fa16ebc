"""What the tools answer, as values with JSON Schemas; made from the answers of Darkroom's API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

SCHEME = "darkroom://"
QUEUE_URI = f"{SCHEME}queue"


class PictureReport(BaseModel):
    """One finished picture, with its number in its job.

    `held`: why the picture check keeps it back; empty if it does not.
    """

    number: int
    uri: str
    width: int
    height: int
    held: str


class JobReport(BaseModel):
    """One job. `jobs_ahead` and `eta` (seconds) say how long it waits."""

    job: str
    state: str
    prompt: str
    step: int
    total_steps: int
    percent: int
    seed: int | None
    sampler: str | None
    model: str | None
    jobs_ahead: int | None
    eta: float | None
    reason: str
    is_yours: bool
    pictures: list[PictureReport]


class JobsReport(BaseModel):
    """The jobs of one request, and notes about it."""

    jobs: list[JobReport]
    notes: list[str]


class QueueReport(BaseModel):
    """The running jobs and the waiting ones in their order. `sentence`: why nothing runs; else empty."""

    jobs: list[JobReport]
    models: list[str]
    sentence: str


class SuggestionReport(BaseModel):
    """One prompt for a picture, and how much smaller the model's error is with it, as a share."""

    prompt: str
    error_reduction: float


class DescriptionReport(BaseModel):
    """Prompts for a picture, the best first."""

    model: str
    prompts: list[SuggestionReport]
    sentence: str
    notes: list[str]


class SentenceReport(BaseModel):
    """What happened to a job."""

    job: str
    sentence: str


def picture_uri(job: str, number: int) -> str:
    """Return the address of a finished picture, which counts from 1."""
    return f"{SCHEME}jobs/{job}/pictures/{number}"


def preview_uri(job: str, number: int) -> str:
    """Return the address of a preview of a running job's picture."""
    return f"{SCHEME}jobs/{job}/previews/{number}"


def report_job(answer: Mapping[str, Any]) -> JobReport:
    """Make the report of a job as the API describes it."""
    pictures = [
        PictureReport(
            number=picture["n"],
            uri=picture_uri(answer["id"], picture["n"]),
            width=picture["width"],
            height=picture["height"],
            held=picture["held"],
        )
        for picture in answer["pictures"]
    ]
    return JobReport(
        job=answer["id"],
        state=answer["state"],
        prompt=answer["prompt"],
        step=answer["step"],
        total_steps=answer["total_steps"],
        percent=answer["percent"],
        seed=answer.get("seed"),
        sampler=answer.get("sampler"),
        model=answer.get("model"),
        jobs_ahead=answer["jobs_ahead"],
        eta=answer["eta"],
        reason=answer["reason"] or answer["wait_reason"],
        is_yours=answer["author"]["you"],
        pictures=pictures,
    )
