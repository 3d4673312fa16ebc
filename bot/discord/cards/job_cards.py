"""Messages about jobs as cards, text and rows of buttons; a job's details; the texts around its final card.

Pure: the current time is an argument. Knows Discord's limits and markdown but not its library, so that every text can
be tested without it. Text that a member wrote always goes through `escape_discord`. The parameters in the details have
the format of AUTOMATIC1111's web UI, which other tools read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from bot.discord.cards import button_layout
from bot.discord.cards.button_layout import ButtonRow
from bot.domain import texts
from bot.domain.dto import AcceptedJob, JobAction, JobView
from bot.domain.job_states import is_end
from bot.domain.steering import AmendmentView
from bot.domain.texts import clean_text, drop_one_time_notes, escape_discord
from bot.pictures import moderation_status
from bot.prompt.flags import prompt_title
from engine.contract import (
    FULL_INTERVAL,
    SAMPLER_TITLES,
    Recipe,
    has_skipped_steps,
    list_final_images,
    make_part_fields,
    noise_seed,
    recipe_at_end,
)

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
    line = f"⏳ {_waiting_text(accepted_job.jobs_ahead, accepted_job.eta, accepted_job, now)}"
    content = _render_content(accepted_job.prompt, escape_discord(member_name, 64), [line], accepted_job.notes)
    return Card(content, button_layout.build_cancel_rows(accepted_job.job))


def render_waiting(view: JobView, ahead: int, eta: float | None, now: float) -> Card:
    """Return the card of a job that has not started."""
    return _open_card(view, [f"⏳ {_waiting_text(ahead, eta, view, now)}"])


def render_loading(view: JobView, model: str, fraction: float, model_bytes: int = 0) -> Card:
    """Return the card of a job whose worker loads its model."""
    return _open_card(view, [f"⏳ {escape_discord(texts.format_loading(model, fraction, model_bytes), 120)}"])


def _open_card(view: JobView, lines: Sequence[str]) -> Card:
    return Card(_render_job(view, lines), button_layout.build_cancel_rows(view.id))


def _render_job(view: JobView, lines: Sequence[str]) -> str:
    return _render_content(view.prompt, _author_and_origin(view), lines, drop_one_time_notes(view.notes))


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
    progress = f"{texts.progress_bar(step, total_steps, 12)} {texts.percent_done(step, total_steps)} %"
    lines = [f"{progress} · step {step} of {total_steps} · done {_timestamp(now + seconds_left)}"]
    lines += [_render_amendment(amendment) for amendment in amendments[-MAX_AMENDMENTS_SHOWN:]]
    rows = button_layout.build_developing_rows(view) if is_steerable else button_layout.build_cancel_rows(view.id)
    return Card(_render_job(view, lines), rows, texts.shorten(view.prompt, MAX_ALT))


def render_ended(view: JobView) -> Card:
    """Return the card of a job that is finished, failed or cancelled."""
    if view.state == "finished":
        lines = [_render_footer(view), *(f"🔒 {line}" for line in moderation_status.hold_reasons(view))]
        rows = button_layout.build_finished_rows(view)
        return Card(_render_job(view, lines), rows, texts.shorten(view.prompt, MAX_ALT))
    is_cancelled = view.state == "cancelled"
    reason = view.reason or (texts.format_cancellation(view.step, view.total_steps) if is_cancelled else "It failed.")
    lines = [f"{'⏹️' if is_cancelled else '❌'} {escape_discord(reason, 500)}"]
    if isinstance(view.task, Recipe) and view.task.interpolation is not None:
        lines.append(f"-# {PARTIAL_FILM_HINT}")  # its finished parts have their own messages
    return Card(_render_content(view.prompt, _author_and_origin(view), lines, ()), button_layout.build_retry_rows(view))


def note_too_large(card: Card) -> Card:
    """Add that the picture is larger than this server accepts."""
    has_several = any(button.kind == "up" for row in card.rows for button in row)
    return _add_note(card, "The picture is too large for this server" + ("; U shows each one." if has_several else "."))


def note_missing(card: Card) -> Card:
    """Add that the pictures are deleted or corrupt."""
    return _add_note(card, "Its picture cannot be shown: it is deleted or corrupt.")


def _add_note(card: Card, note: str) -> Card:
    return replace(card, content=_fit_lines([card.content, f"-# {note}"], MAX_CONTENT))


def render_queue(views: Sequence[JobView], now: float, hint: str = "", reader: str = "") -> str:
    """List the running jobs, then the waiting ones in start order with their reasons, then `hint`.

    Others' private jobs appear to `reader` without prompt and name.
    """
    if not views:
        return "Nothing is running and nothing waits: a job starts at once."
    lines = [_queue_line(number, view, now, reader) for number, view in enumerate(views, 1)]
    text = _fit_lines(lines, MAX_CONTENT - 40 - len(hint))
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
    subject = f"{escape_discord(job_title(view.prompt), 60)} · {escape_discord(view.member_name, 32)}"
    head = f"`{number}.` {'a private picture' if is_hidden else subject}"
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
    head = f"**{escape_discord(job_title(prompt), 900)}** · {author}"
    return _fit_lines([head, *lines, *(f"-# {escape_discord(note, 240)}" for note in notes)], MAX_CONTENT)


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


STATE_EMOJI = {"finished": "✅", "failed": "❌", "cancelled": "⏹️", "running": "▶️", "sent": "▶️", "queued": "⏳"}
STATE_TITLES = {"sent": "about to start", "queued": "waiting"}


def render_details(view: JobView, now: float) -> str:
    """Return a job's details within one message."""
    head = [
        f"**{escape_discord(job_title(view.prompt), 600)}** · {escape_discord(view.member_name, 64)}",
        _render_state(view, now),
    ]
    head += [line for line in (_render_times(view), _render_origin(view), _render_reason(view)) if line]
    head += [f"-# {escape_discord(note, 200)}" for note in drop_one_time_notes(view.notes)[:4]]
    foot = f"-# Job `{view.id}`"
    space_left = MAX_CONTENT - sum(len(line) + 1 for line in (*head, foot)) - len("```\n\n```\n")
    block: list[str] = []
    if isinstance(view.task, Recipe) and space_left > 100:
        block = ["```", escape_code_block(render_parameters(view), space_left), "```"]
    return "\n".join([*head, *block, foot])


def render_parameters(view: JobView) -> str:
    """Return the parameters in A1111's three lines, as in the PNG: prompt, negative prompt, settings."""
    steered = view.task
    if not isinstance(steered, Recipe):
        return clean_text(view.prompt)
    recipe = recipe_at_end(steered)
    images = list_final_images(steered)
    words = [entry.text if entry.weight == 1 else f"{entry.text}::{entry.weight:g}" for entry in recipe.concepts]
    prompt = " ".join([*words, *(f"<lora:{entry.name}:{entry.weight:g}>" for entry in recipe.loras)])
    settings = {
        "Steps": recipe.steps,
        "Sampler": SAMPLER_TITLES[recipe.sampler],
        "CFG scale": f"{recipe.guidance:g}",
        "Seed": recipe.seed,
        "Size": f"{recipe.width}x{recipe.height}",
        "Model": recipe.model,
    }
    if (interval := recipe.guidance_interval) != FULL_INTERVAL:
        settings["Guidance interval"] = f"{interval[0]:g}-{interval[1]:g}"
    settings |= {"Evaluations": recipe.evaluations} if has_skipped_steps(recipe) else {}
    settings |= {"Styles": " / ".join(recipe.styles)} if recipe.styles else {}
    if recipe.candidate_count:
        settings["Best of"] = recipe.candidate_count
    if recipe.chosen_candidates:
        settings["Seeds"] = " ".join(str(noise_seed(recipe, image)) for image in images)
    if view.enlargement > 1:
        settings["Hires upscale"] = view.enlargement
    if recipe.interpolation and recipe.interpolation.end_prompt:
        settings["Walk to"] = recipe.interpolation.end_prompt
    settings |= make_part_fields(recipe)
    if steered.amendments:
        settings["Steered"] = texts.format_changes(len(steered.amendments))
    if recipe.lineage:
        ancestors = (f"{entry.seed + entry.index}@{entry.strength:g}" for entry in recipe.lineage)
        settings["Variation of"] = " ".join(ancestors)
    lines = [clean_text(prompt), f"Negative prompt: {clean_text(recipe.negative)}" if recipe.negative else ""]
    lines.append(", ".join(f"{name}: {value}" for name, value in settings.items()))
    return "\n".join(line for line in lines if line)


def escape_code_block(text: str, limit: int) -> str:
    """Return `text` for the inside of a code block: it cannot end the block, and is cut to `limit` characters."""
    text = text.replace("``", "`\u200b`").replace("@", "@\u200b")
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def _render_state(view: JobView, now: float) -> str:
    line = f"{STATE_EMOJI[view.state]} {STATE_TITLES.get(view.state, view.state)}"
    if view.state == "queued":
        line += f": {escape_discord(view.wait_reason, 200)}" if view.wait_reason else ""
    elif not is_end(view.state):
        line += f" · {texts.percent_done(view.step, view.total_steps)} % · step {view.step} of {view.total_steps}"
    if view.eta is not None:
        line += f" · done <t:{round(now + view.eta)}:R>"
    return f"{line} · private" if view.is_private else line


def _render_times(view: JobView) -> str:
    parts = [f"asked for <t:{round(view.created)}:f>"]
    if view.started is not None:
        parts.append(f"waited {texts.format_duration(view.started - view.created)}")
    if view.seconds is not None:
        parts.append(f"took {texts.format_duration(view.seconds)}")
    if view.ms_per_step:
        parts.append(texts.format_step_time(view.task, view.ms_per_step))
    verb = "costs" if is_end(view.state) else "is estimated at"
    parts.append(f"{verb} {texts.format_duration(view.cost)} of device time" if view.cost > 0 else "costs nothing")
    return " · ".join(parts)


def _render_origin(view: JobView) -> str:
    origins = {
        "vary": "A variation of picture",
        "upscale": "An upscale of picture",
        "remix": "Another prompt for picture",
        "edit": "An edit of picture",
        "zoom": "Zoomed out of picture",
        "pan": "Panned from picture",
        "branch": "Branched off from picture",
        "walk": "An interpolation from picture",
    }
    if view.parent_image is None:
        return ""
    job, index = view.parent_image
    if view.action in origins:
        return f"{origins[view.action]} {index + 1} of `{job}`"
    whole_job_origins = {"reproduce": "The same as", "finish": "Finished from the draft"}
    return f"{whole_job_origins.get(view.action, 'Another seed of')} `{job}`"


def _render_reason(view: JobView) -> str:
    if view.deleted_at is not None:
        return f"Its pictures were deleted <t:{round(view.deleted_at)}:R>."
    return escape_discord(view.reason, 400)


LONG_JOB_SECONDS = 60.0  # seconds: the end of a longer job is a new message, if no rule sets another limit


def message_link(target: Mapping[str, str]) -> str:
    """Return the address of a message; empty if its id is unknown."""
    if not target.get("message"):
        return ""
    return f"https://discord.com/channels/{target.get('guild') or '@me'}/{target['channel']}/{target['message']}"


def render_notice(card: Card, user_id: str) -> Card:
    """Return the finished card as a new message that pings the author, by their Discord id."""
    return replace(card, content=_fit_between([f"<@{user_id}>"], card.content, []))


def render_collapsed(view: JobView, address: str) -> Card:
    """Return the one line that replaces the progress message, with a link to the notice at `address`."""
    emoji, text = ("✅", "Done") if view.state == "finished" else ("❌", "It failed")
    status = f"[{text}]({address})" if address else text
    title = escape_discord(job_title(view.prompt), 200)
    return Card(f"{emoji} **{title}** · {escape_discord(view.member_name, 64)} · {status}")


def render_direct(card: Card, reason: str) -> Card:
    """Return the finished card for a direct message, with the reason; without one, the author prefers them."""
    if not reason:
        return card
    note = f"-# {escape_discord(reason, 300)} So it comes to you."
    return replace(card, content=_fit_between([], card.content, [note]))


def with_full_size_link(card: Card, address: str) -> Card:
    """Return the finished card with the web address of pictures that are too large for Discord."""
    return replace(card, content=_fit_between([], card.content, [f"-# Full size: {address}"]))


def _fit_between(before: list[str], content: str, after: list[str]) -> str:
    """Join all added lines and as many whole lines of the card as fit."""
    lines = content.split("\n")
    while len(lines) > 1 and len("\n".join([*before, *lines, *after])) > MAX_CONTENT:
        lines.pop()
    return "\n".join([*before, *lines, *after])[:MAX_CONTENT]
