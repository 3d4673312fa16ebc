"""Texts that all front ends share, and functions that make members' text safe to repeat.

Handles English and Discord's markdown and mentions as text; imports no discord library, HTML or terminal code.
"""

from __future__ import annotations

import math
import re
import unicodedata
from functools import lru_cache
from typing import TYPE_CHECKING

from engine.contract import FULL_INTERVAL, SAMPLER_TITLES, Recipe, has_skipped_steps, recipe_at_end
from engine.process.load_progress import format_loading as format_model_loading

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from engine.contract import Blame, ModelProgress, Task, UpscaleMethod

NO_WORKER = "No worker is online. The job waits, and starts when one comes."
INIT_IMAGE_GONE = "The picture that this job begins with no longer exists."
PICTURES_DELETED = "Its pictures were deleted."
BLAME_SENTENCES = {
    "member": "This one counts against your limit.",
    "model": "The model's fault: it costs you nothing.",
    "worker": "The worker's fault: it costs you nothing.",
    "us": "Our fault: it costs you nothing.",
}

# Endings of notes that are said only once.
ALL_STEPS_ENDING = "runs all steps."
WHOLE_PIPELINE_ENDING = "the whole picture goes through the unmodified pipeline, so it cannot move to another worker."
_OLD_ENDINGS = ("asks for the full course.", "midway it cannot go on elsewhere.")  # in notes of stored jobs

_JOINERS = "\u200c\u200d"  # needed inside Persian and Indic words and between emoji; a disguise anywhere else
_INVISIBLE = "\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0"  # letters and marks that draw nothing
MAX_MARKS = 4  # combining marks on a letter
_MARKDOWN = frozenset("\\*_~`|<>#[]/")
_LIST_NUMBER = re.compile(r"[0-9]+(?=[.)] )")


def clean_text(text: str) -> str:
    """Return `text` on one line: no control, bidi, zero-width, private or unpaired character, single spaces, trimmed.

    A letter keeps at most four marks: no script needs more, and heaps of them cover the lines around.
    """
    visible_text = "".join(_visible_character(text, position) for position in range(len(text)))
    return " ".join("".join(_limit_marks(visible_text)).split())


def _limit_marks(text: str) -> Iterator[str]:
    mark_count = MAX_MARKS  # none at the beginning or after a space: there they would attach to other text
    for character in text:
        is_mark = unicodedata.category(character) in ("Mn", "Me")
        mark_count = mark_count + 1 if is_mark else MAX_MARKS if character == " " else 0
        if not is_mark or mark_count <= MAX_MARKS:
            yield character


def _visible_character(text: str, position: int) -> str:
    character = text[position]
    if character in _JOINERS:
        neighbours = text[max(0, position - 1) : position] + text[position + 1 : position + 2]
        return character if len(neighbours) == 2 and all(_is_joinable(neighbour) for neighbour in neighbours) else ""
    if character in _INVISIBLE:
        return ""
    category = unicodedata.category(character)
    if category in ("Cf", "Cs", "Co", "Cn"):
        return ""
    return " " if category in ("Cc", "Zl", "Zp", "Zs") else character


def _is_joinable(character: str) -> bool:
    return not character.isascii() and unicodedata.category(character)[0] in "LMS"


@lru_cache(maxsize=2048)  # a job's prompt is repeated with each preview
def escape_discord(text: str, limit: int = 1000) -> str:
    """Escape `text` for a Discord message, at most `limit` characters: it pings nobody, links nowhere, formats nothing.

    A zero-width space after `@` breaks mentions, since Discord does not reliably honour a backslash there. Backslashes
    escape all else: markdown, `<#…>`, `<t:…>`, addresses, and invites that would unfold into an embed. The cut, marked
    by an ellipsis, never falls inside an escape.
    """
    text = clean_text(text)
    list_number = _LIST_NUMBER.match(text)
    pieces: list[str] = []
    room = limit
    for position, character in enumerate(text):
        starts_list = position == list_number.end() if list_number else position == 0 and character in "-+"
        piece = "\\" + character if starts_list else _escape_character(character)
        remaining = len(text) - position - 1
        if len(piece) > room - (1 if remaining else 0):
            return "".join(pieces) + "…"[:room]
        pieces.append(piece)
        room -= len(piece)
    return "".join(pieces)


def _escape_character(character: str) -> str:
    if character == "@":
        return "@\u200b"
    return "\\" + character if character in _MARKDOWN else character


def shorten(text: str, limit: int = 60) -> str:
    """Return `text` on one line, cut with an ellipsis to `limit` characters; for quoting a value inside a sentence."""
    text = clean_text(text[: 4 * limit])
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"


def format_duration(seconds: float) -> str:
    """Format seconds, rounded up: `0.4` → "1 s", `80` → "1 min 20 s", `7300` → "2 h 2 min", `2e5` → "2 d 8 h"."""
    whole_seconds = max(1, math.ceil(min(seconds, 1e9)))
    if whole_seconds < 60:
        return f"{whole_seconds} s"
    if whole_seconds < 3600:
        return _format_two_units(whole_seconds, 60, "min", 1, "s")
    return (
        _format_two_units(whole_seconds, 3600, "h", 60, "min")
        if whole_seconds < 86400
        else _format_two_units(whole_seconds, 86400, "d", 3600, "h")
    )


def _format_two_units(whole_seconds: int, big: int, big_name: str, small: int, small_name: str) -> str:
    first, rest = divmod(math.ceil(whole_seconds / small) * small, big)
    return f"{first} {big_name}" + (f" {rest // small} {small_name}" if rest else "")


def format_job_count(count: int) -> str:
    """Return "1 job", "3 jobs"."""
    return f"{count} job" if count == 1 else f"{count} jobs"


def drop_one_time_notes(notes: Sequence[str]) -> tuple[str, ...]:
    """Return the notes that stay under a job's picture; the others are said once."""
    return tuple(note for note in notes if not note.endswith((ALL_STEPS_ENDING, WHOLE_PIPELINE_ENDING, *_OLD_ENDINGS)))


def format_cost(count: int, cost: float) -> str:
    """Say what was queued and what it costs, in device-seconds as in `engine.contract.presence`."""
    return f"{format_job_count(count)}, about {format_duration(cost)} of device time{'' if count == 1 else ' in all'}."


def format_queue_place(jobs_ahead: int, eta: float | None, *, has_worker: bool = True, startup_notice: str = "") -> str:
    """Say where a queued job stands: how many jobs start before it, and the seconds until it is done, if known.

    `startup_notice`: a sentence about a worker that is starting up.
    """
    if not has_worker:
        return startup_notice or NO_WORKER
    place = "Next in line" if jobs_ahead <= 0 else f"{format_job_count(jobs_ahead)} ahead of it"
    return f"{place}." if eta is None else f"{place}, done in about {format_duration(eta)}."


def percent_done(step: int, total_steps: int) -> int:
    """Return the whole percent done; 100 only when it is done."""
    if total_steps <= 0:
        return 0
    return max(0, min(100, step * 100 // total_steps))


def progress_bar(step: int, total_steps: int, width: int = 20) -> str:
    """Return a progress bar of `width` blocks."""
    filled = percent_done(step, total_steps) * width // 100
    return "█" * filled + "░" * (width - filled)


def format_progress(step: int, total_steps: int, seconds_left: float | None) -> str:
    """Return a progress line: "██░░ 42 % · step 420 of 1000 · 12 s left"."""
    time_left = "" if seconds_left is None else f" · {format_duration(seconds_left)} left"
    return (
        f"{progress_bar(step, total_steps)} {percent_done(step, total_steps)} % · step {step} of "
        f"{total_steps}{time_left}"
    )


def format_footer(
    recipe: Recipe, seconds: float | None = None, ms_per_step: float | None = None, enlargement: int = 1
) -> str:
    """Summarise in one line how the pictures were made: enough to make them again with the same prompt."""
    parts = [format_steps(recipe), f"seed {recipe.seed}"]
    parts += [f"steered by {format_changes(len(recipe.amendments))}"] if recipe.amendments else []
    parts += [format_guidance(recipe_at_end(recipe)), format_size(recipe, enlargement), recipe.model]
    parts += [f"LoRA {lora.name} ×{lora.weight:g}" for lora in recipe.loras]
    parts += [f"control {control.name} ×{control.scale:g}" for control in recipe.controls]
    parts += [f"reference {reference.name} ×{reference.scale:g}" for reference in recipe.references]
    parts += [f"VAE {recipe.autoencoder.name}"] if recipe.autoencoder else []
    parts += [f"clip skip {recipe.clip_skip + 1}"] if recipe.clip_skip else []
    if recipe.candidate_count:
        parts.append(f"best {recipe.count} of {recipe.candidate_count}")
    if seconds is not None:
        parts.append(format_duration(seconds))
    if ms_per_step:
        parts.append(format_step_time(recipe, ms_per_step))
    return " · ".join(parts)


def format_steps(recipe: Recipe) -> str:
    """Return "30 steps of DPM++ 2M", "1000 steps of DDPM with 100 evaluations"."""
    steps = f"{recipe.steps} steps of {SAMPLER_TITLES[recipe.sampler]}"
    return f"{steps} with {recipe.evaluations} evaluations" if has_skipped_steps(recipe) else steps


def format_step_time(task: Task, ms: float) -> str:
    """Return "48.0 ms a step"; where steps are skipped, the time is that of an evaluation."""
    return f"{ms:.1f} ms {'an evaluation' if isinstance(task, Recipe) and has_skipped_steps(task) else 'a step'}"


def format_changes(count: int) -> str:
    """Return "1 change", "3 changes"."""
    return f"{count} change" if count == 1 else f"{count} changes"


def format_guidance(recipe: Recipe) -> str:
    """Return "guidance 4", "guidance 4 from 0.2 to 0.8"."""
    interval = recipe.guidance_interval
    part = "" if interval == FULL_INTERVAL else f" from {interval[0]:g} to {interval[1]:g}"
    return f"guidance {recipe.guidance:g}{part}"


def format_loading(model: str, loaded_share: float, model_bytes: int = 0) -> str:
    """Say that a job's worker loads its model: "loading sd15, 1.2 of 2.0 GB", or "loading sd15, 40 %"."""
    return format_model_loading(model, loaded_share, model_bytes)


def format_startup(progress: ModelProgress | None) -> str:
    """Say that a worker is starting up; empty if none is."""
    if progress is None:
        return ""
    if progress.model is None or progress.phase in ("prepare", "ready"):
        return "A worker is starting."
    if progress.phase == "measure":
        return f"A worker is starting: measuring {progress.model}."
    return f"A worker is starting: {format_loading(progress.model, progress.done, progress.size)}."


def format_failure(reason: str, blame: Blame) -> str:
    """Say why a job failed, and who pays for it."""
    return f"{shorten(reason, 400).rstrip('.')}. {BLAME_SENTENCES[blame]}"


def format_cancellation(step: int, total_steps: int) -> str:
    """Say that a job was cancelled, and what it is charged."""
    if step <= 0:
        return "Cancelled before it began: it costs you nothing."
    return f"Cancelled at step {step} of {total_steps}: only these steps are charged."


def format_size(recipe: Recipe, enlargement: int) -> str:
    """Return the pictures' size: "256×256, drawn at 64×64"."""
    size = f"{recipe.width}×{recipe.height}"
    if enlargement == 1:
        return size
    return f"{recipe.width * enlargement}×{recipe.height * enlargement}, drawn at {size}"


def format_upscale(factor: int, width: int, height: int, method: UpscaleMethod) -> str:
    """Say how a single picture was upscaled."""
    if method == "gan":
        return f"Enlarged ×{factor} to {width}×{height} by our super-resolver, which makes up the finer detail."
    return f"Enlarged ×{factor} to {width}×{height} by Lanczos resampling: larger, but with no detail added."
