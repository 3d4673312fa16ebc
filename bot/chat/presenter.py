"""Messages about jobs as cards: text and rows of buttons.

Pure: the current time is an argument. Knows Discord's limits and markdown but not its library, so that every text can
be tested without it. Text that a member wrote always goes through `sentences.quoted`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from bot import sentences
from bot.chat import rows
from bot.chat.called import called
from bot.chat.rows import Row
from bot.images import held
from bot.sentences import lasting, quoted
from bot.views import Action, Ticket, View
from engine.job import Recipe

CONTENT, ALT = 2000, 1024
REST_OF_WALK = "If other parts of this interpolation are finished, `/film kind: interpolation` shows them."


@dataclass(frozen=True)
class Card:
    """One message: its text, its rows of buttons, and the picture's alt text."""

    content: str
    rows: tuple[Row, ...] = ()
    alt: str = ""


def accepted(ticket: Ticket, member: str, now: float) -> Card:
    """Return the first response to a request: its place in the queue, or what it waits for."""
    state = _waiting(ticket.ahead, ticket.eta, ticket, now)
    return Card(_text(ticket.prompt, quoted(member, 64), [f"⏳ {state}"], ticket.notes), rows.cancelling(ticket.job))


def waiting(view: View, ahead: int, eta: float | None, now: float) -> Card:
    """Return the card of a job that has not started."""
    state = _waiting(ahead, eta, view, now)
    return Card(_text(view.prompt, _whose(view), [f"⏳ {state}"], lasting(view.notes)), rows.cancelling(view.id))


def loading(view: View, model: str, done: float, size: int = 0) -> Card:
    """Return the card of a job whose worker loads its model."""
    lines = [f"⏳ {quoted(sentences.loading(model, done, size), 120)}"]
    return Card(_text(view.prompt, _whose(view), lines, lasting(view.notes)), rows.cancelling(view.id))


def developing(view: View, step: int, of: int, seconds_left: float, now: float) -> Card:
    """Return the card of a running job, at `step` of `of`."""
    done = f"{sentences.bar(step, of, 12)} {sentences.percent(step, of)} % · step {step} of {of}"
    lines = [f"{done} · done {_moment(now + seconds_left)}"]
    return Card(_text(view.prompt, _whose(view), lines, lasting(view.notes)), rows.cancelling(view.id), _alt(view))


def ended(view: View) -> Card:
    """Return the card of a job that is finished, failed or cancelled."""
    if view.state == "finished":
        lines = [_footer(view), *(f"🔒 {line}" for line in held.lines(view))]
        return Card(_text(view.prompt, _whose(view), lines, lasting(view.notes)), rows.finished(view), _alt(view))
    cancelled = view.state == "cancelled"
    said = view.reason or (sentences.cancelled(view.step, view.of) if cancelled else "It failed.")
    lines = [f"{'⏹️' if cancelled else '❌'} {quoted(said, 500)}"]
    if isinstance(view.recipe, Recipe) and view.recipe.walk is not None:  # its finished parts have their own messages
        lines.append(f"-# {REST_OF_WALK}")
    return Card(_text(view.prompt, _whose(view), lines, ()), rows.again(view))


def unshown(card: Card) -> Card:
    """Add that the picture is larger than this server accepts."""
    several = any(button.press == "up" for row in card.rows for button in row)
    said = "-# The picture is too large for this server" + ("; U shows each one." if several else ".")
    return replace(card, content=_fit([card.content, said], CONTENT))


def unkept(card: Card) -> Card:
    """Add that the pictures are deleted or corrupt."""
    said = "-# Its picture cannot be shown: it is deleted or corrupt."
    return replace(card, content=_fit([card.content, said], CONTENT))


def queue(views: Sequence[View], now: float, hint: str = "", reader: str = "") -> str:
    """List the running jobs, then the waiting ones in start order with their reasons, then `hint`.

    Others' private jobs appear to `reader` without prompt and name.
    """
    if not views:
        return "Nothing is running and nothing waits: a job starts at once."
    shown = _fit([_line(number, view, now, reader) for number, view in enumerate(views, 1)], CONTENT - 40 - len(hint))
    left = len(views) - shown.count("\n") - 1
    more = f"… and {sentences.jobs(left)} more." if left else ""
    return "\n".join(part for part in (shown, more, hint) if part)


def refusal(sentence: str) -> str:
    """Return a refusal, escaped: the sentence may quote the member."""
    return f"🚫 {quoted(sentence, CONTENT - 2)}"


def already(link: str) -> str:
    """Return the response to a double click."""
    return f"That is already on its way: {link}" if link else "That is already on its way."


def _line(number: int, view: View, now: float, reader: str) -> str:
    hidden = view.hidden_from(reader)
    what = "a private picture" if hidden else f"{quoted(called(view.prompt), 60)} · {quoted(view.member_name, 32)}"
    who = f"`{number}.` {what}"
    done = "" if view.eta is None else f" · done {_moment(now + view.eta)}"
    if view.state != "queued":
        return f"{who} · ▶️ {sentences.percent(view.step, view.of)} %{done}"
    why = "" if hidden else quoted(view.why, 120)
    return f"{who} · ⏳ {why or _waiting(view.ahead or 0, None, view, now)}{done}"


def _waiting(ahead: int, eta: float | None, job: Ticket | View, now: float) -> str:
    text = sentences.waiting(ahead, None, worker=job.worker, starting=quoted(job.starting, 120))
    return text if eta is None or not job.worker else f"{text[:-1]}, done {_moment(now + eta)}."


def _moment(at: float) -> str:
    """Return a timestamp that each client counts down by itself, without an edit."""
    return f"<t:{round(at)}:R>"


def _whose(view: View) -> str:
    """Return the author's name and the job's origin."""
    name = quoted(view.member_name, 64)
    number = view.parent[1] + 1 if view.parent else 1
    origins: Mapping[Action, str] = {
        "vary": f"variation of {number}", "upscale": f"picture {number}", "reroll": "another seed", "remix": "remixed",
        "reproduce": "made once more", "blend": "blended", "edit": f"edited from {number}",
        "zoom": f"zoomed out of {number}", "pan": f"panned from {number}", "branch": f"branched off {number}",
        "walk": "interpolation",
    }  # fmt: skip
    return f"{name} · {origins[view.action]}" if view.action in origins else name


def _text(prompt: str, whose: str, lines: Sequence[str], notes: Sequence[str]) -> str:
    said = [f"**{quoted(called(prompt), 900)}** · {whose}", *lines, *(f"-# {quoted(note, 240)}" for note in notes)]
    return _fit(said, CONTENT)


def _fit(lines: Sequence[str], limit: int) -> str:
    """Return the lines that fit, whole: a cut inside one could break its escapes."""
    kept: list[str] = []
    for line in lines:
        if sum(map(len, kept)) + len(kept) + len(line) > limit:
            break
        kept.append(line)
    return "\n".join(kept)


def _footer(view: View) -> str:
    if isinstance(view.recipe, Recipe):
        return sentences.footer(view.recipe, view.seconds, view.ms_per_step, view.enlargement)
    shot = view.pictures[0]
    return sentences.enlarged(view.recipe.factor, shot.width, shot.height, view.recipe.method)


def _alt(view: View) -> str:
    return sentences.shortened(view.prompt, ALT)
