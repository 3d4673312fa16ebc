"""Job requests: what a member asks for, before it has an id. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import msgspec

from bot.domain.dto import JobAction, Member, StoredInput
from bot.domain.errors import UserError
from bot.domain.texts import format_cost
from bot.prompt.capability_check import check_capabilities
from bot.prompt.loras import RequestedLora, resolve_loras
from bot.prompt.model_parts import renew_controls, renew_embeddings, renew_references, resolve_autoencoder
from bot.queue.model_catalog import CatalogEntry
from bot.store import NewJob
from engine.contract import Job, MalformedMessage, ModelPart, Quantization, Recipe, Task, decode, encode


@dataclass(frozen=True)
class JobRequest:
    """One requested job. `cost` in device-seconds. `relaxed`: the member asked for that speed by its flag."""

    action: JobAction
    prompt: str
    notes: tuple[str, ...]
    task: Task
    pool: str
    cost: float
    parent_image: tuple[str, int] | None = None
    relaxed: bool = False
    inputs: tuple[StoredInput, ...] = ()

    @property
    def model(self) -> str:
        """The model that its worker must offer; empty for an upscale, which any worker runs."""
        return self.task.model if isinstance(self.task, Recipe) else ""


def add_total_cost(requests: Sequence[JobRequest]) -> list[JobRequest]:
    """Put the total cost of several requests first in the first one's notes."""
    if len(requests) < 2:
        return list(requests)
    total_note = format_cost(len(requests), sum(request.cost for request in requests))
    return [replace(requests[0], notes=(total_note, *requests[0].notes)), *requests[1:]]


def renew_recipe(old: Recipe, entry: CatalogEntry) -> tuple[Recipe, tuple[str, ...]]:
    """Update an old recipe to the current weights of its model and its parts. Return it with notes if they changed.

    Raises `UserError` if the model no longer accepts the recipe.
    """
    profile = entry.profile
    loras = resolve_loras((RequestedLora(lora.name, lora.weight) for lora in old.loras), profile)
    new = msgspec.structs.replace(
        old,
        revision=profile.revision or old.revision,
        dtype=profile.dtype,
        guidance_kind=profile.guidance_kind,
        loras=loras,
        quantization=profile.quantization,
        controls=renew_controls(old.controls, profile),
        references=renew_references(old.references, profile),
        embeddings=renew_embeddings(old.embeddings, profile),
        autoencoder=resolve_autoencoder(old.autoencoder.name if old.autoencoder else None, profile),
        v=1,  # the lowest that it needs
    )
    if new.needs_choice and not profile.has_judge:  # a button cannot leave out --best
        new = msgspec.structs.replace(new, candidate_count=0, v=1)
    check_capabilities(new, profile)
    return new, tuple(_changed_notes(old, new))


def _changed_notes(old: Recipe, new: Recipe) -> Iterator[str]:
    if old.revision and new.revision != old.revision:
        yield f"Made with a newer version of {new.model}: it will differ."
    if new.candidate_count != old.candidate_count:
        yield f"No worker with a judge for {new.model} is known, so all pictures that are drawn are shown."
    if new.quantization != old.quantization:
        yield (
            f"Made with {_describe_weights(old.quantization)} of {new.model}, and now drawn with "
            f"{_describe_weights(new.quantization)}: it will differ."
        )
    for noun, name in _changed_parts(old, new):
        yield f"Made with another version of the {noun} {name}: it will differ."


def _describe_weights(quantization: Quantization) -> str:
    return "whole weights" if quantization == "none" else f"{quantization} weights"


def _changed_parts(old: Recipe, new: Recipe) -> Iterator[tuple[str, str]]:
    """Yield noun and name of each part whose revision changed."""
    for noun, old_parts, new_parts in (
        ("LoRA", old.loras, new.loras),
        ("control", old.controls, new.controls),
        ("reference adapter", old.references, new.references),
        ("textual inversion", old.embeddings, new.embeddings),
        ("autoencoder", _as_tuple(old.autoencoder), _as_tuple(new.autoencoder)),
    ):
        revisions = {part.name: part.revision for part in old_parts}
        names = (part.name for part in new_parts if part.revision != (revisions.get(part.name) or part.revision))
        yield from ((noun, name) for name in dict.fromkeys(names))


def _as_tuple(part: ModelPart | None) -> tuple[ModelPart, ...]:
    return () if part is None else (part,)


def offline_note(entry: CatalogEntry, any_worker: bool) -> str:
    """Return the note on a model that no live worker offers. `any_worker`: whether a worker is online at all.

    It stays on the finished job, so it says what was true at the request.
    """
    cause = "No worker had this model ready" if any_worker else "No worker was online"
    return (
        f"{cause} yet: this uses the last known settings of {entry.profile.name}: {entry.profile.dtype}, "
        f"and {entry.profile.steps} steps unless you say otherwise."
    )


def check_fits(new_job: NewJob) -> None:
    """Check that workers would accept the job. Raises `UserError` (400) now, which avoids a dead letter later."""
    try:
        decode(encode(new_job.to_job()), Job)
    except MalformedMessage as error:
        raise UserError(f"No worker would accept this job: {error}.", 400) from error


def member_key(key: str | None, member: Member) -> str | None:
    """Bind an idempotency key of any length to its member, so that nobody gets another's job by guessing."""
    return None if key is None else hashlib.sha256(f"{member.id}\0{key}".encode()).hexdigest()
