"""A job's details as text: how it was made, when, its cost, and its parameters to copy. Pure.

The parameters have the format of AUTOMATIC1111's web UI, which other tools read.
"""

from __future__ import annotations

from bot.discord.cards.job_cards import MAX_CONTENT, job_title
from bot.domain import texts
from bot.domain.dto import JobView
from bot.domain.job_states import is_end
from bot.domain.texts import clean_text, drop_one_time_notes, escape_discord
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
    block = (
        ["```", escape_code_block(render_parameters(view), space_left), "```"]
        if isinstance(view.task, Recipe) and space_left > 100
        else []
    )
    return "\n".join([*head, *block, foot])


def render_parameters(view: JobView) -> str:
    """Return the parameters in A1111's three lines, as in the PNG: prompt, negative prompt, settings."""
    steered = view.task
    if not isinstance(steered, Recipe):
        return clean_text(view.prompt)
    recipe = recipe_at_end(steered)
    images = list_final_images(steered)
    prompt = " ".join(
        entry.text if entry.weight == 1 else f"{entry.text}::{entry.weight:g}" for entry in recipe.concepts
    )
    prompt = " ".join([prompt, *(f"<lora:{entry.name}:{entry.weight:g}>" for entry in recipe.loras)])
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
        settings["Variation of"] = " ".join(
            f"{entry.seed + entry.index}@{entry.strength:g}" for entry in recipe.lineage
        )
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
