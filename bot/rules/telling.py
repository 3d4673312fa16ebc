"""Sentences about rules: who set one, for whom, and which one decides. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bot.limits import Limits
from bot.rules.catalogue import SETTINGS, Setting
from bot.rules.reading import UNLIMITED, written
from bot.rules.rule import ALL, EVERYWHERE, Change, Rule, Scope, Step, Value
from bot.rules.terms import COUNTED, Cap, Terms, ceilings
from bot.sentences import shortened

Names = Mapping[str, str]  # a channel's, role's or user's id → how it is shown
NOBODY: Names = {}
SET_BY: Mapping[Scope, str] = {
    "house": "This bot's operator set that for this server.",
    "guild": "This server's admins set that for everybody here.",
    "channel": "This server's admins set that for this channel.",
    "role": "This server's admins set that for a role of yours.",
    "user": "This server's admins set that for you.",
}


@dataclass(frozen=True)
class Explained:
    """The effective value of one setting: `value` as text, `used` so far ("2 of 3"; empty if nothing is counted).

    `rule` decides, None for the bot's default; of several limits it is the one with least left. `sentence` says so, and
    what else applies. `frees`: when a part of the usage expires (seconds since 1970), None if unknown. `taken`: the
    used share of the limit, 1 for all of it; None if nothing is counted.
    """

    setting: str
    value: str
    used: str
    sentence: str
    rule: Rule | None = None
    frees: float | None = None
    taken: float | None = None


def set_by(rule: Rule | None) -> str:
    """Return who set it, as a sentence at the end of a refusal; empty for the bot's default."""
    if rule is None:
        return ""
    return "This bot's operator set that, over all servers." if rule.guild == EVERYWHERE else SET_BY[rule.scope]


def shown(name: str, value: Value | None) -> str:
    """Return a value for a sentence: "no limit" for None; a long list is cut."""
    if value is None:
        return UNLIMITED[0]
    return shortened(written(SETTINGS[name], value).replace("\n", ", "), 200) or "not set"


def subject(scope: Scope, subject: str, names: Names = NOBODY) -> str:
    """Return whom a rule is for."""
    if scope in ("house", "guild"):
        return "this server"
    name = names.get(subject)
    return f"{scope} {subject}" if name is None else name


def described(step: Step, names: Names = NOBODY) -> str:
    """Return one step of a change as text: "cost_day for @artists: 30 min → 1 h"."""
    before, after = ("no rule" if value is None else shown(step.setting, value) for value in (step.before, step.after))
    whom = "the operator's ceiling" if step.scope == "house" else subject(step.scope, step.subject, names)
    return f"{step.setting} for {whom}: {before} → {after}"


def summed(change: Change, names: Names = NOBODY) -> str:
    """Return a change as one sentence."""
    number = len(change.steps)
    which = described(change.steps[0], names) if number == 1 else f"{number} rules"
    undone = f" (undone by {change.undone})" if change.undone else ""
    of = f" of change {change.undoes}" if change.undoes else ""
    return f"{change.number}: {change.what}{of} by {shortened(change.actor_name, 40)}: {which}{undone}"


def because(
    setting: Setting, terms: Terms, rules: Sequence[Rule], defaults: Limits, names: Names = NOBODY,
    tight: Cap | None = None,
) -> str:  # fmt: skip
    """Return which rule decides a setting, over or beside which others, and what the operator allows.

    `rules` apply to the member; `tight` is, of limits that apply together, the one with least left.
    """
    decides = tight.rule if tight else terms.because.get(setting.name)
    value = tight.limit if tight else getattr(terms, setting.name)
    caps = [cap.rule for cap in terms.of(setting.name)]
    own = _ranked([rule for rule in rules if not _high(rule)])
    joined, together = _joined(setting, decides, own, rules, names)
    said = f"{setting.name} is {shown(setting.name, value)}: {together or _who(decides, setting, defaults, names)}"
    others = [rule for rule in own if rule not in joined and rule != decides]
    over = [rule for rule in others if rule not in caps]
    beside = [_lesser(rule, names) for rule in others if rule in caps]
    if decides is not None and None in caps:
        least = min(cap.limit for cap in terms.of(setting.name) if cap.rule is None)
        beside.append(f"this bot's default of {shown(setting.name, least)}")
    if over:
        said += f", over {', and '.join(_lesser(rule, names) for rule in over[:3])}"
    if beside:
        said += (
            f", as it has the least left; also in force {'is' if len(beside) == 1 else 'are'} {' and '.join(beside)}"
        )
    high = [rule for rule in caps if rule and _high(rule)] if tight else ceilings([r for r in rules if _high(r)])
    high = [rule for rule in high if rule != decides and rule not in joined]
    return f"{said}{''.join(f'; {_ceiling(rule)}' for rule in high[:2])}."


def _high(rule: Rule) -> bool:
    """Return whether the operator set it."""
    return rule.scope == "house" or rule.guild == EVERYWHERE


def _joined(
    setting: Setting, decides: Rule | None, own: Sequence[Rule], rules: Sequence[Rule], names: Names
) -> tuple[Sequence[Rule], str]:
    """Return lists that add up, and what to say of them; empty if one rule decides alone.

    Lists of several roles add up, and so do forbidden words of a server and of the operator.
    """
    if decides is not None and decides.scope == "role" and isinstance(decides.value, tuple):
        roles = [rule for rule in own if rule.scope == "role"]
        if decides.value not in [rule.value for rule in roles]:
            whose = [subject(one.scope, one.subject, names) for one in roles]
            return roles, f"the rules for {' and '.join(whose)} add up"
    if setting.kind == "texts" and len(rules) > 1:
        whose = ["this server", *["this bot's operator" for rule in rules if _high(rule)][:1]]
        return rules, f"the lists of {' and of '.join(whose if own else whose[1:])} add up"
    return (), ""


def _who(rule: Rule | None, setting: Setting, defaults: Limits, names: Names) -> str:
    if rule is None:
        return "no rule is set, so this bot's default holds" if _default(setting, defaults) else "no rule is set"
    if rule.guild == EVERYWHERE:
        return "this bot's operator decides, for all servers"
    if rule.scope == "house":
        return "this bot's operator decides, for this server"
    if rule.scope == "guild":
        return "the server's rule decides"
    whom = subject(rule.scope, rule.subject, names)
    return f"the {rule.scope}'s rule for {whom} decides" if rule.subject in names else f"the rule for {whom} decides"


def _default(setting: Setting, defaults: Limits) -> bool:
    return setting.name in COUNTED and hasattr(defaults, setting.name)


def _lesser(rule: Rule, names: Names) -> str:
    whose = "server" if rule.scope == "guild" else subject(rule.scope, rule.subject, names)
    return f"the {whose}'s {shown(rule.setting, rule.value)}" if rule.scope == "guild" else (
        f"{whose}'s {shown(rule.setting, rule.value)}"
    )  # fmt: skip


def _ceiling(rule: Rule) -> str:
    where = "over all servers" if rule.guild == EVERYWHERE else "here"
    listed = SETTINGS[rule.setting].kind in ("choices", "names", "choice") and rule.value != ALL
    least = "only" if listed else "at most" if SETTINGS[rule.setting].numeric else "at least"
    return f"this bot's operator allows {least} {shown(rule.setting, rule.value)} {where}"


def _ranked(rules: list[Rule]) -> list[Rule]:
    order: tuple[Scope, ...] = ("user", "role", "channel", "guild")
    return sorted(rules, key=lambda rule: (order.index(rule.scope), rule.subject))
