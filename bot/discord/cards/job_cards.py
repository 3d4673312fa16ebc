"""Messages about jobs as cards: text and rows of buttons.

Pure: the current time is an argument. Knows Discord's limits and markdown but not its library, so that every text can
be tested without it. Text that a member wrote always goes through `escape_discord`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from bot.discord.cards import button_layout
from bot.discord.cards.button_layout import ButtonRow
from bot.domain import texts
from bot.domain.dto import AcceptedJob, JobAction, JobView
from bot.domain.steering import AmendmentView
from bot.domain.texts import drop_one_time_notes, escape_discord
from bot.pictures import moderation_status
from bot.prompt.flags import prompt_title
from engine.contract import Recipe

NO_PROMPT = "without a prompt"  # a blend, or a job with an init image, needs none
MAX_CONTENT = 2000
MAX_ALT = 1024
MAX_AMENDMENTS_SHOWN = 3  # under a developing picture
PARTIAL_FILM_HINT = "If other parts of this interpolation are finished, `/film kind: interpolation` shows them."


@dataclass(frozen=True)
class Card:
    """One message: its text, its rows of buttons, and the picture's alt text."""

    content: str
    rows: tuple[ButtonRow, ...] = ()
    alt: str = ""


def render_accepted(accepted_job: AcceptedJob, member_name: str, now: float) -> Card:
    """Return the first response to a request: its place in the queue, or what it waits for."""
    text = _waiting_text(accepted_job.jobs_ahead, accepted_job.eta, accepted_job, now)
    return Card(
        _render_content(accepted_job.prompt, escape_discord(member_name, 64), [f"⏳ {text}"], accepted_job.notes),
        button_layout.build_cancel_rows(accepted_job.job),
    )


def render_waiting(view: JobView, ahead: int, eta: float | None, now: float) -> Card:
    """Return the card of a job that has not started."""
    text = _waiting_text(ahead, eta, view, now)
    return Card(
        _render_content(view.prompt, _author_and_origin(view), [f"⏳ {text}"], drop_one_time_notes(view.notes)),
        button_layout.build_cancel_rows(view.id),
    )


def render_loading(view: JobView, model: str, fraction: float, model_bytes: int = 0) -> Card:
    """Return the card of a job whose worker loads its model."""
    lines = [f"⏳ {escape_discord(texts.format_loading(model, fraction, model_bytes), 120)}"]
    return Card(
        _render_content(view.prompt, _author_and_origin(view), lines, drop_one_time_notes(view.notes)),
        button_layout.build_cancel_rows(view.id),
    )


def render_progress(
    view: JobView,
    step: int,
    total_steps: int,
    seconds_left: float,
    now: float,
    *,
    amendments: Sequence[AmendmentView] = (),
    is_steerable: bool = False,
) -> Card:
    """Return the card of a running job, at `step` of `total_steps`, with the newest of its amendments."""
    progress = (
        f"{texts.progress_bar(step, total_steps, 12)} {texts.percent_done(step, total_steps)} % · step {step} of "
        f"{total_steps}"
    )
    lines = [f"{progress} · done {_timestamp(now + seconds_left)}"]
    lines += [_render_amendment(amendment) for amendment in amendments[-MAX_AMENDMENTS_SHOWN:]]
    return Card(
        _render_content(view.prompt, _author_and_origin(view), lines, drop_one_time_notes(view.notes)),
        button_layout.build_developing_rows(view) if is_steerable else button_layout.build_cancel_rows(view.id),
        texts.shorten(view.prompt, MAX_ALT),
    )


def render_ended(view: JobView) -> Card:
    """Return the card of a job that is finished, failed or cancelled."""
    if view.state == "finished":
        lines = [_render_footer(view), *(f"🔒 {line}" for line in moderation_status.hold_reasons(view))]
        return Card(
            _render_content(view.prompt, _author_and_origin(view), lines, drop_one_time_notes(view.notes)),
            button_layout.build_finished_rows(view),
            texts.shorten(view.prompt, MAX_ALT),
        )
    is_cancelled = view.state == "cancelled"
    reason = view.reason or (texts.format_cancellation(view.step, view.total_steps) if is_cancelled else "It failed.")
    lines = [f"{'⏹️' if is_cancelled else '❌'} {escape_discord(reason, 500)}"]
    if (
        isinstance(view.task, Recipe) and view.task.interpolation is not None
    ):  # its finished parts have their own messages
        lines.append(f"-# {PARTIAL_FILM_HINT}")
    return Card(_render_content(view.prompt, _author_and_origin(view), lines, ()), button_layout.build_retry_rows(view))


def note_too_large(card: Card) -> Card:
    """Add that the picture is larger than this server accepts."""
    has_several = any(button.kind == "up" for row in card.rows for button in row)
    note = "-# The picture is too large for this server" + ("; U shows each one." if has_several else ".")
    return replace(card, content=_fit_lines([card.content, note], MAX_CONTENT))


def note_missing(card: Card) -> Card:
    """Add that the pictures are deleted or corrupt."""
    note = "-# Its picture cannot be shown: it is deleted or corrupt."
    return replace(card, content=_fit_lines([card.content, note], MAX_CONTENT))


def render_queue(views: Sequence[JobView], now: float, hint: str = "", reader: str = "") -> str:
    """List the running jobs, then the waiting ones in start order with their reasons, then `hint`.

    Others' private jobs appear to `reader` without prompt and name.
    """
    if not views:
        return "Nothing is running and nothing waits: a job starts at once."
    text = _fit_lines(
        [_queue_line(number, view, now, reader) for number, view in enumerate(views, 1)], MAX_CONTENT - 40 - len(hint)
    )
    omitted_count = len(views) - text.count("\n") - 1
    more = f"… and {texts.format_job_count(omitted_count)} more." if omitted_count else ""
    return "\n".join(part for part in (text, more, hint) if part)


def render_refusal(sentence: str) -> str:
    """Return a refusal, escaped: the sentence may quote the member."""
    return f"🚫 {escape_discord(sentence, MAX_CONTENT - 2)}"


def render_duplicate(address: str) -> str:
    """Return the response to a double click."""
    return f"That is already on its way: {address}" if address else "That is already on its way."


def job_title(prompt: str) -> str:
    """Return the prompt without emphasis and flags, or `NO_PROMPT`."""
    return prompt_title(prompt) or NO_PROMPT


def _queue_line(number: int, view: JobView, now: float, reader: str) -> str:
    is_hidden = view.is_private and view.member_id != reader
    subject = (
        "a private picture"
        if is_hidden
        else f"{escape_discord(job_title(view.prompt), 60)} · {escape_discord(view.member_name, 32)}"
    )
    head = f"`{number}.` {subject}"
    eta_text = "" if view.eta is None else f" · done {_timestamp(now + view.eta)}"
    if view.state != "queued":
        return f"{head} · ▶️ {texts.percent_done(view.step, view.total_steps)} %{eta_text}"
    reason = "" if is_hidden else escape_discord(view.wait_reason, 120)
    return f"{head} · ⏳ {reason or _waiting_text(view.jobs_ahead or 0, None, view, now)}{eta_text}"


def _waiting_text(ahead: int, eta: float | None, job: AcceptedJob | JobView, now: float) -> str:
    text = texts.format_queue_place(
        ahead, None, has_worker=job.has_worker, startup_notice=escape_discord(job.startup_notice, 120)
    )
    return text if eta is None or not job.has_worker else f"{text[:-1]}, done {_timestamp(now + eta)}."


def _render_amendment(amendment: AmendmentView) -> str:
    """Return what a member said while the picture developed."""
    said = f"**{escape_discord(amendment.member_name, 32)}**: {escape_discord(amendment.text, 160)}"
    if amendment.state == "refused":
        return f"🚫 {said} · {escape_discord(amendment.reason, 120)}"
    return f"💬 {said}" + (" · soon" if amendment.step is None else f" · from step {amendment.step}")


def _timestamp(unix_time: float) -> str:
    """Return a timestamp that each client counts down by itself, without an edit."""
    return f"<t:{round(unix_time)}:R>"


def _author_and_origin(view: JobView) -> str:
    """Return the author's name and the job's origin."""
    name = escape_discord(view.member_name, 64)
    number = view.parent_image[1] + 1 if view.parent_image else 1
    origins: Mapping[JobAction, str] = {
        "vary": f"variation of {number}",
        "upscale": f"picture {number}",
        "reroll": "another seed",
        "remix": "remixed",
        "reproduce": "made once more",
        "finish": "finished",
        "blend": "blended",
        "edit": f"edited from {number}",
        "zoom": f"zoomed out of {number}",
        "pan": f"panned from {number}",
        "branch": f"branched off {number}",
        "walk": "interpolation",
    }
    return f"{name} · {origins[view.action]}" if view.action in origins else name


def _render_content(prompt: str, author: str, lines: Sequence[str], notes: Sequence[str]) -> str:
    content = [
        f"**{escape_discord(job_title(prompt), 900)}** · {author}",
        *lines,
        *(f"-# {escape_discord(note, 240)}" for note in notes),
    ]
    return _fit_lines(content, MAX_CONTENT)


def _fit_lines(lines: Sequence[str], limit: int) -> str:
    """Return the lines that fit, whole: a cut inside one could break its escapes."""
    result: list[str] = []
    for line in lines:
        if sum(map(len, result)) + len(result) + len(line) > limit:
            break
        result.append(line)
    return "\n".join(result)


def _render_footer(view: JobView) -> str:
    if isinstance(view.task, Recipe):
        return texts.format_footer(view.task, view.seconds, view.ms_per_step, view.enlargement)
    picture = view.pictures[0]
    return texts.format_upscale(view.task.factor, picture.width, picture.height, view.task.method)
