"""A job's details as text: what made it, when, its cost, and its parameters to copy. Pure.

The parameters have the format of AUTOMATIC1111's web UI, which other tools read.
"""

from __future__ import annotations

from bot import sentences
from bot.chat.called import called
from bot.chat.presenter import CONTENT
from bot.sentences import lasting, plain, quoted
from bot.states import over
from bot.views import View
from engine.job import ALL_ALONG, SAMPLER_TITLES, Recipe

SIGNS = {"finished": "✅", "failed": "❌", "cancelled": "⏹️", "running": "▶️", "sent": "▶️", "queued": "⏳"}
STATES = {"sent": "about to start", "queued": "waiting"}


def details(view: View, now: float) -> str:
    """Return a job's details within one message."""
    head = [f"**{quoted(called(view.prompt), 600)}** · {quoted(view.member_name, 64)}", _state(view, now)]
    head += [line for line in (_times(view), _origin(view), _reason(view)) if line]
    head += [f"-# {quoted(note, 200)}" for note in lasting(view.notes)[:4]]
    foot = f"-# Job `{view.id}`"
    room = CONTENT - sum(len(line) + 1 for line in (*head, foot)) - len("```\n\n```\n")
    block = ["```", fenced(parameters(view), room), "```"] if isinstance(view.recipe, Recipe) and room > 100 else []
    return "\n".join([*head, *block, foot])


def parameters(view: View) -> str:
    """Return the parameters in A1111's three lines, as in the PNG: prompt, negative prompt, settings."""
    recipe = view.recipe
    if not isinstance(recipe, Recipe):
        return plain(view.prompt)
    words = " ".join(one.text if one.weight == 1 else f"{one.text}::{one.weight:g}" for one in recipe.concepts)
    words = " ".join([words, *(f"<lora:{one.name}:{one.weight:g}>" for one in recipe.loras)])
    settings = {
        "Steps": recipe.steps,
        "Sampler": SAMPLER_TITLES[recipe.sampler],
        "CFG scale": f"{recipe.guidance:g}",
        "Seed": recipe.seed,
        "Size": f"{recipe.width}x{recipe.height}",
        "Model": recipe.model,
    }
    if (held := recipe.interval) != ALL_ALONG:
        settings["Guidance interval"] = f"{held[0]:g}-{held[1]:g}"
    if view.enlargement > 1:
        settings["Hires upscale"] = view.enlargement
    if recipe.walk and recipe.walk.to:
        settings["Walk to"] = recipe.walk.to
    if recipe.lineage:
        settings["Variation of"] = " ".join(f"{one.seed + one.index}@{one.strength:g}" for one in recipe.lineage)
    lines = [plain(words), f"Negative prompt: {plain(recipe.negative)}" if recipe.negative else ""]
    lines.append(", ".join(f"{name}: {value}" for name, value in settings.items()))
    return "\n".join(line for line in lines if line)


def fenced(text: str, limit: int) -> str:
    """Return `text` for the inside of a code block: it cannot end the block, and is cut to `limit` characters."""
    text = text.replace("``", "`\u200b`").replace("@", "@\u200b")
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def _state(view: View, now: float) -> str:
    line = f"{SIGNS[view.state]} {STATES.get(view.state, view.state)}"
    if view.state == "queued":
        line += f": {quoted(view.why, 200)}" if view.why else ""
    elif not over(view.state):
        line += f" · {sentences.percent(view.step, view.of)} % · step {view.step} of {view.of}"
    if view.eta is not None:
        line += f" · done <t:{round(now + view.eta)}:R>"
    return f"{line} · private" if view.private else line


def _times(view: View) -> str:
    parts = [f"asked for <t:{round(view.created)}:f>"]
    if view.started is not None:
        parts.append(f"waited {sentences.duration(view.started - view.created)}")
    if view.seconds is not None:
        parts.append(f"took {sentences.duration(view.seconds)}")
    if view.ms_per_step:
        parts.append(f"{view.ms_per_step:.1f} ms a step")
    verb = "costs" if over(view.state) else "is estimated at"
    parts.append(f"{verb} {sentences.duration(view.cost)} of device time" if view.cost > 0 else "costs nothing")
    return " · ".join(parts)


def _origin(view: View) -> str:
    made = {
        "vary": "A variation of picture",
        "upscale": "An upscale of picture",
        "remix": "Another prompt for picture",
        "edit": "An edit of picture",
        "zoom": "Zoomed out of picture",
        "pan": "Panned from picture",
        "branch": "Branched off from picture",
        "walk": "An interpolation from picture",
    }
    if view.parent is None:
        return ""
    job, index = view.parent
    if view.action in made:
        return f"{made[view.action]} {index + 1} of `{job}`"
    return f"{'The same as' if view.action == 'reproduce' else 'Another seed of'} `{job}`"


def _reason(view: View) -> str:
    if view.deleted is not None:
        return f"Its pictures were deleted <t:{round(view.deleted)}:R>."
    return quoted(view.reason, 400)
