"""What a message says: jobs as cards, made of text and buttons.

Pure: values in, values out; the time of day is an argument. Knows Discord's limits and its markdown, not its library:
every text can be read and tested without one. Whatever a member wrote goes through `sentences.quoted`.
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
REST_OF_WALK = "Where other parts of this walk are finished, `/film kind: a walk` shows them."


@dataclass(frozen=True)
class Card:
    """One message: its text, its rows of buttons, and what the picture says to those who cannot see it."""

    content: str
    rows: tuple[Row, ...] = ()
    alt: str = ""


def accepted(ticket: Ticket, member: str, now: float) -> Card:
    """The first answer to a request: its place in the queue, or what it waits for."""
    state = _waiting(ticket.ahead, ticket.eta, ticket, now)
    return Card(_text(ticket.prompt, quoted(member, 64), [f"⏳ {state}"], ticket.notes), rows.cancelling(ticket.job))


def waiting(view: View, ahead: int, eta: float | None, now: float) -> Card:
    """A job that has not begun."""
    state = _waiting(ahead, eta, view, now)
    return Card(_text(view.prompt, _whose(view), [f"⏳ {state}"], lasting(view.notes)), rows.cancelling(view.id))


def loading(view: View, model: str, done: float, size: int = 0) -> Card:
    """A job whose worker fetches its model into memory."""
    lines = [f"⏳ {quoted(sentences.loading(model, done, size), 120)}"]
    return Card(_text(view.prompt, _whose(view), lines, lasting(view.notes)), rows.cancelling(view.id))


def developing(view: View, step: int, of: int, seconds_left: float, now: float) -> Card:
    """A job under way, at `step` of `of`."""
    done = f"{sentences.bar(step, of, 12)} {sentences.percent(step, of)} % · step {step} of {of}"
    lines = [f"{done} · done {_moment(now + seconds_left)}"]
    return Card(_text(view.prompt, _whose(view), lines, lasting(view.notes)), rows.cancelling(view.id), _alt(view))


def ended(view: View) -> Card:
    """A job that is over, whichever way."""
    if view.state == "finished":
        lines = [_footer(view), *(f"🔒 {line}" for line in held.lines(view))]
        return Card(_text(view.prompt, _whose(view), lines, lasting(view.notes)), rows.finished(view), _alt(view))
    cancelled = view.state == "cancelled"
    said = view.reason or (sentences.cancelled(view.step, view.of) if cancelled else "It failed.")
    lines = [f"{'⏹️' if cancelled else '❌'} {quoted(said, 500)}"]
    if isinstance(view.recipe, Recipe) and view.recipe.walk is not None:  # those that are finished have their messages
        lines.append(f"-# {REST_OF_WALK}")
    return Card(_text(view.prompt, _whose(view), lines, ()), rows.again(view))


def unshown(card: Card) -> Card:
    """A finished job whose picture is larger than this server takes."""
    several = any(button.press == "up" for row in card.rows for button in row)
    said = "-# The picture is too large for this server" + ("; U shows each one." if several else ".")
    return replace(card, content=_fit([card.content, said], CONTENT))


def unkept(card: Card) -> Card:
    """A finished job whose pictures are gone or spoilt."""
    said = "-# Its picture cannot be shown: it is not kept any more, or cannot be read."
    return replace(card, content=_fit([card.content, said], CONTENT))


def queue(views: Sequence[View], now: float, hint: str = "", reader: str = "") -> str:
    """The running jobs, then the waiting ones in the order in which they will start, with the reason; then `hint`.

    Of others' private jobs `reader` sees that they are there.
    """
    if not views:
        return "Nothing is running and nothing waits: a job starts at once."
    shown = _fit([_line(number, view, now, reader) for number, view in enumerate(views, 1)], CONTENT - 40 - len(hint))
    left = len(views) - shown.count("\n") - 1
    more = f"… and {sentences.jobs(left)} more." if left else ""
    return "\n".join(part for part in (shown, more, hint) if part)


def refusal(sentence: str) -> str:
    """A refusal as it is shown: the sentence may quote the member."""
    return f"🚫 {quoted(sentence, CONTENT - 2)}"


def already(link: str) -> str:
    """A button that was pressed twice."""
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
    """A moment that every reader's own client counts down to, without an edit."""
    return f"<t:{round(at)}:R>"


def _whose(view: View) -> str:
    """Whose job it is, and where it comes from."""
    name = quoted(view.member_name, 64)
    number = view.parent[1] + 1 if view.parent else 1
    origins: Mapping[Action, str] = {
        "vary": f"variation of {number}", "upscale": f"picture {number}", "reroll": "another seed", "remix": "remixed",
        "reproduce": "made once more", "blend": "blended", "edit": f"changed from {number}",
        "zoom": f"zoomed out of {number}", "pan": f"beyond the edge of {number}", "branch": f"branched off {number}",
        "walk": "from picture to picture",
    }  # fmt: skip
    return f"{name} · {origins[view.action]}" if view.action in origins else name


def _text(prompt: str, whose: str, lines: Sequence[str], notes: Sequence[str]) -> str:
    said = [f"**{quoted(called(prompt), 900)}** · {whose}", *lines, *(f"-# {quoted(note, 240)}" for note in notes)]
    return _fit(said, CONTENT)


def _fit(lines: Sequence[str], limit: int) -> str:
    """The lines that fit, whole: a cut inside one could break its escapes."""
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
