"""Cards for admins: the overview, and the exceptions for channels, roles and members.

Pure but for discord's components: values in, layouts out. Lines are short, for a phone; common actions are one tap
away.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from discord import ui

from bot.chat.settings import parts, wording
from bot.chat.settings.explained import Group
from bot.rules.catalogue import SETTINGS
from bot.rules.rule import EVERYWHERE, Change, Rule, Scope, Value
from bot.rules.terms import Terms
from bot.sentences import quoted

EXCEPTIONS: dict[Scope, str] = {"channel": "Channels", "role": "Roles", "user": "Members"}
PAGE = 15  # rules on one page of exceptions
CHANGES = 5  # on one page of the history
RED, GREEN, BLUE = 0xED4245, 0x57F287, 0x5865F2
LEGEND = "-# **Bold** is set on this server, 🔒 by this bot's operator; the rest is the bot's default."
ORDER = "-# The most specific rule holds: member, then role, channel, everyone."


def overview(terms: Terms, rules: Sequence[Rule], notice: Sequence[ui.Item] = ()) -> ui.LayoutView:
    """Return what holds for everyone, how many exceptions there are, and everything that can be changed."""
    items: list[ui.Item] = [*notice, parts.text("## Settings of this server")]
    if terms.closed:
        said = f"🔴 **Closed**: {quoted(terms.closed, 300)}"
        items.append(parts.beside(said, parts.button("Open", "open", style=parts.Style.success)))
    items += [
        parts.text("### Each member", *(_line(name, terms) for name in wording.EACH)),
        parts.text("### All together", *(_line(name, terms, wording.alone(name)) for name in wording.TOGETHER)),
        parts.text("### This server", *(_line(name, terms) for name in (*wording.SWITCHES, "words", "patterns"))),
        parts.text(LEGEND, ORDER),
        parts.select("Change a limit of each member …", _choices(wording.EACH, terms), "change"),
        parts.select(
            "Change this server …", _choices((*wording.TOGETHER, *wording.SWITCHES), terms), "change", "server"
        ),
        ui.ActionRow(ui.UserSelect(placeholder="What may one member do, and why? …", custom_id=parts.named("explain"))),
        parts.row(
            *(_exceptions(scope, rules) for scope in EXCEPTIONS), parts.button("Incidents", "incidents", "waiting", 0)
        ),
        _more(closed=bool(terms.closed)),
    ]
    return parts.layout(*items, colour=RED if terms.closed else BLUE)


def exceptions(scope: Scope, rules: Sequence[Rule], page: int, notice: Sequence[ui.Item] = ()) -> ui.LayoutView:
    """Return the rules for single channels, roles or members, numbered, since a select can show no mentions."""
    own = _of(scope, rules)
    pages = max(1, -(-len(own) // PAGE))
    page = max(0, min(page, pages - 1))
    shown = own[page * PAGE : (page + 1) * PAGE]
    numbered = [(number, rule) for number, rule in enumerate(shown, page * PAGE + 1)]
    lines = [
        f"`{number}` {wording.whom(scope, rule.subject)} · {wording.title(rule.setting)}: "
        f"**{wording.said(rule.setting, rule.value)}**"
        for number, rule in numbered
    ]
    items: list[ui.Item] = [*notice, parts.text(f"## {EXCEPTIONS[scope]} with rules of their own")]
    items.append(parts.text(*(lines or ["None."])))
    if numbered:
        items.append(parts.select("Change or remove one …", map(_numbered, numbered), "change", "rule"))
    items += parts.pager("page", scope, page=page, pages=pages)
    items.append(parts.row(parts.button("Back", "show"), parts.button("Add a rule", "add", scope)))
    return parts.layout(*items, colour=BLUE)


def explanation(head: str, said: Sequence[Group], user: str) -> ui.LayoutView:
    """Return what holds for a member, group by group, and a select to set it for them."""
    options = [(f"user/discord:{user}/{name}", wording.title(name), SETTINGS[name].about) for name in wording.EACH]
    room, items = parts.LAYOUT - len(head), list[ui.Item]([parts.text(head)])
    for heading, lines in said:
        shown = wording.fitting([f"### {heading}", *lines] if heading else lines, room)
        room -= len("\n".join(shown))
        items += [ui.Separator(), parts.text(*shown)]
    items += [
        parts.select("Set something for this member …", options, "change", "member"),
        parts.row(parts.button("All settings", "show")),
    ]
    return parts.layout(*items, colour=BLUE)


def history(
    changes: Sequence[Change], page: int, mine: Collection[int], notice: Sequence[ui.Item] = ()
) -> ui.LayoutView:
    """Return one page of changes, the newest first; the reader may undo those of the numbers `mine`."""
    pages = max(1, -(-len(changes) // CHANGES))
    page = max(0, min(page, pages - 1))
    items: list[ui.Item] = [*notice, parts.text("## What was changed here")]
    if not changes:
        items.append(parts.text("Nothing yet."))
    for change in changes[page * CHANGES : (page + 1) * CHANGES]:
        off = change.undone is not None or change.number not in mine
        items.append(parts.beside(wording.entry(change), parts.button("Undo", "back", change.number, page, off=off)))
    items += parts.pager("log", page=page, pages=pages)
    items.append(parts.row(parts.button("All settings", "show")))
    return parts.layout(*items, colour=BLUE)


def notice(line: str, undo: int | None = None) -> list[ui.Item]:
    """Return what has just happened, for the top of a card; `undo`: the number of the change that a button reverts."""
    if undo is None:
        return [parts.text(line), ui.Separator()]
    return [parts.beside(line, parts.button("Undo", "undo", undo)), ui.Separator()]


def question(said: Sequence[str], yes: ui.Button) -> ui.LayoutView:
    """Return a card that shows what would change, and asks."""
    shown = wording.fitting(said, parts.LAYOUT)
    return parts.layout(parts.text(*shown), parts.row(yes, parts.button("Cancel", "dismiss")), colour=BLUE)


def done(line: str, *, undo: int | None = None, good: bool = True) -> ui.LayoutView:
    """Return one sentence, with buttons to undo and to go back."""
    row = [parts.button("All settings", "show")]
    if undo is not None:
        row.insert(0, parts.button("Undo", "undo", undo))
    return parts.layout(parts.text(line), parts.row(*row), colour=GREEN if good else RED)


def _line(name: str, terms: Terms, title: str = "") -> str:
    value = getattr(terms, name)
    rule = terms.because.get(name)
    if name.startswith("together_") and value is None:
        said = wording.NO_LIMIT
    elif name in ("words", "patterns") and not value:
        said = "none"
    elif name == "reports" and not value:
        said = "moderators' list only"
    else:
        said = wording.said(name, value)
    lock = " 🔒" if rule is not None and (rule.scope == "house" or rule.guild == EVERYWHERE) else ""
    return f"{title or wording.title(name)} · {f'**{said}**' if rule is not None else said}{lock}"


def _choices(names: Sequence[str], terms: Terms) -> list[tuple[str, str, str]]:
    """Return settings for a select, each with its present value."""
    return [(name, wording.title(name), _described(name, getattr(terms, name))) for name in names]


def _described(name: str, value: Value | None) -> str:
    nothing = wording.NO_LIMIT if name in wording.TOGETHER else "nothing"
    now = wording.plainly(name, value)[:40] if value not in (None, "") else nothing
    return f"now {now}: {SETTINGS[name].about}"


def _of(scope: Scope, rules: Sequence[Rule]) -> list[Rule]:
    own = (rule for rule in rules if rule.scope == scope and rule.guild != EVERYWHERE)
    return sorted(own, key=lambda rule: (rule.subject, list(SETTINGS).index(rule.setting)))


def _exceptions(scope: Scope, rules: Sequence[Rule]) -> ui.Button:
    return parts.button(f"{EXCEPTIONS[scope]}: {len(_of(scope, rules))}", "page", scope, 0)


def _numbered(one: tuple[int, Rule]) -> tuple[str, str, str]:
    number, rule = one
    return rule_id(rule), f"{number} · {wording.title(rule.setting)}", wording.plainly(rule.setting, rule.value)


def rule_id(rule: Rule) -> str:
    """Return a rule as one word: scope, subject, setting. Subjects may have colons in them."""
    return f"{rule.scope}/{rule.subject}/{rule.setting}"


def _more(*, closed: bool) -> ui.ActionRow:
    buttons = [
        parts.button("History", "log", 0),
        parts.button("Presets", "presets"),
        parts.button("Words", "words"),
        parts.button("Export", "export"),
    ]
    if not closed:
        buttons.append(parts.button("Close", "close", style=parts.Style.danger))
    return parts.row(*buttons)
