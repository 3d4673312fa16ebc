"""Rules: which one decides, in any order; values as text and back; changes and their inverse."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bot.domain.dto import Member
from bot.domain.errors import UserError
from bot.policy.limits import Limits
from bot.policy.rules import (
    ALL,
    EVERYWHERE,
    SETTINGS,
    Rule,
    RuleChange,
    RuleStep,
    RuleValue,
    Scope,
    planned_changes,
    resolve,
)
from bot.policy.rules.catalogue import Setting
from bot.policy.rules.effective_rules import USAGE_SETTINGS, RunningLimits, is_applicable
from bot.policy.rules.explanations import describe_step, explain_decision, set_by_sentence, summarise_change
from bot.policy.rules.value_parser import find_setting, format_setting_value, parse_list, parse_value

ANN = Member("ann", "Ann", "g", roles=("artists", "members"), channel="studio")
DEFAULTS = Limits()
NUMBERS = (*USAGE_SETTINGS, "steps", "pixels", "count")
SUBJECTS = {
    "operator": ("",),
    "guild": ("",),
    "channel": ("studio", "lobby"),
    "role": ("artists", "members", "others"),
    "user": ("ann", "bob"),
}


def values(one: Setting) -> st.SearchStrategy[RuleValue]:
    """Any value that a setting can have."""
    if one.kind in ("number", "cost", "seconds", "size"):
        return st.integers(one.minimum, one.maximum)
    if one.kind == "switch":
        return st.booleans()
    if one.kind == "choice":
        return st.sampled_from(one.choices)
    if one.kind == "choices":
        chosen = st.sets(st.sampled_from(one.choices)).map(
            lambda some: tuple(choice for choice in one.choices if choice in some)
        )
        return chosen | st.just(ALL)
    if one.kind == "names":
        return _lists(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)) | st.just(ALL) | st.just(())
    if one.kind == "channel":
        return st.integers(1, 10**19).map(str)
    if one.kind == "texts":
        return _lists(st.from_regex(r"[a-z]{2,12}[0-9]{0,3}( [a-z]{2,12})?", fullmatch=True))
    return st.text(st.characters(codec="ascii", categories=("L", "N", "P")), min_size=1, max_size=40)


def _lists(parts: st.SearchStrategy[str]) -> st.SearchStrategy[RuleValue]:
    some = st.sets(parts, min_size=1, max_size=5)
    some = some.filter(lambda ruleset: not {part.casefold() for part in ruleset} & {"all", "none", "*"})
    return some.map(lambda ruleset: tuple(sorted(ruleset, key=lambda part: (part.casefold(), part))))


@st.composite
def rules(draw: st.DrawFn, name: str | None = None) -> list[Rule]:
    """Rules of a guild, of another guild and of the operator, at most one for each key."""
    ruleset: dict[tuple[str, ...], Rule] = {}
    for _ in range(draw(st.integers(0, 12))):
        one = SETTINGS[name or draw(st.sampled_from(sorted(SETTINGS)))]
        guild = draw(st.sampled_from(("g", "g", "g", "other", EVERYWHERE)))
        scopes: list[Scope] = [scope for scope in one.scopes if guild != EVERYWHERE or scope in ("operator", "user")]
        if scopes:
            scope = draw(st.sampled_from(scopes))
            rule = Rule(scope, draw(st.sampled_from(SUBJECTS[scope])), one.name, draw(values(one)), guild)
            ruleset[(guild, *rule.key)] = rule
    return list(ruleset.values())


def documented_value(name: str, ruleset: list[Rule]) -> int:
    """The precedence of a number, as simply as the documentation states it."""
    mine = {(rule.guild, rule.scope, rule.subject): int(str(rule.value)) for rule in ruleset if rule.setting == name}
    roles = [
        value for (guild, scope, role), value in mine.items() if (guild, scope) == ("g", "role") and role in ANN.roles
    ]
    default = {"running": 3, "queued": 7, "cost_day": 1800, "relaxed_day": 14_400}.get(name, SETTINGS[name].maximum)
    for value in (
        mine.get(("g", "user", "ann")),
        max(roles, default=None),
        mine.get(("g", "channel", "studio")),
        mine.get(("g", "guild", "")),
        default,
    ):
        if value is not None:
            break
    wide = mine.get((EVERYWHERE, "user", "ann"), mine.get((EVERYWHERE, "operator", "")))
    return min(one for one in (value, mine.get(("g", "operator", "")), wide) if one is not None)


@settings(deadline=None, max_examples=300)
@given(
    st.sampled_from([*USAGE_SETTINGS, "steps", "pixels", "count"]).flatmap(
        lambda name: st.tuples(st.just(name), rules(name))
    )
)
def test_the_precedence_is_as_documented(drawn: tuple[str, list[Rule]]) -> None:
    name, ruleset = drawn
    terms = resolve(ruleset, ANN, DEFAULTS)
    assert getattr(terms, name) == documented_value(name, ruleset)
    decides = terms.deciding_rules[name]
    if decides is not None:
        assert decides.value == getattr(terms, name)
        assert any(decides == rule for rule in ruleset)
    assert min((cap.limit for cap in terms.limits_of(name)), default=SETTINGS[name].maximum) == (
        getattr(terms, name) if name in USAGE_SETTINGS else SETTINGS[name].maximum
    )


@settings(deadline=None)
@given(rules(), st.randoms())
def test_the_order_and_rules_for_others_do_not_matter(ruleset: list[Rule], rng) -> None:
    shuffled = [rule for rule in ruleset if is_applicable(rule, ANN)]
    rng.shuffle(shuffled)
    assert resolve(shuffled, ANN, DEFAULTS) == resolve(ruleset, ANN, DEFAULTS)


@pytest.mark.slow
@settings(deadline=None)
@given(rules(), rules())
def test_an_operators_ceiling_can_only_restrict(ruleset: list[Rule], more: list[Rule]) -> None:
    free = [rule for rule in ruleset if rule.scope != "operator" and rule.guild != EVERYWHERE]
    ceilings = [rule for rule in more if rule.scope == "operator" or rule.guild == EVERYWHERE]
    before = resolve(free, ANN, DEFAULTS)
    after = resolve(free + ceilings, ANN, DEFAULTS)
    for one in SETTINGS.values():
        old: Any = before.get(one.name)
        new: Any = after.get(one.name)
        if one.is_numeric:
            assert new is not None or old is None
            assert old is None or new <= old
        elif one.kind == "switch" and one.name != "previews":
            assert new or not old
        elif one.kind in ("names", "choices"):
            assert old == ALL or set(new) <= set(old)
        elif one.kind == "texts":
            assert set(old) <= set(new)


@settings(deadline=None)
@given(rules("cost_day"), st.integers(0, 10**6))
def test_the_most_generous_role_counts(ruleset: list[Rule], more: int) -> None:
    roles = [rule for rule in ruleset if rule.scope == "role" and rule.guild == "g"]
    generous = Rule("role", "artists", "cost_day", more, "g")
    rest = [rule for rule in roles if rule.subject != "artists"]
    assert resolve([*rest, generous], ANN, DEFAULTS).cost_day >= more


def test_the_documented_example_holds() -> None:
    ruleset = [
        Rule("guild", "", "cost_day", 1800, "g"),
        Rule("role", "artists", "cost_day", 3600, "g"),
        Rule("operator", "", "cost_day", 7200, "g"),
    ]
    terms = resolve(ruleset, ANN, DEFAULTS)
    assert explain_decision(SETTINGS["cost_day"], terms, ruleset, DEFAULTS, {"artists": "@artists"}) == (
        "cost_day is 1 h: the role's rule for @artists decides, over the server's 30 min; this bot's operator allows "
        "at most 2 h here."
    )
    assert terms.deciding_rules["cost_day"] == ruleset[1]
    assert set_by_sentence(ruleset[1]) == "This server's admins set that for a role of yours."


def test_without_rules_the_defaults_hold_and_count_in_all_servers() -> None:
    terms = resolve([], ANN, DEFAULTS)
    assert (terms.running, terms.queued, terms.cost_day) == (3, 7, 1800)
    assert {(cap.setting, cap.usage_scope) for cap in terms.usage_limits} == {
        (name, "member everywhere") for name in ("running", "queued", "cost_day", "relaxed_day")
    }
    assert explain_decision(SETTINGS["running"], terms, [], DEFAULTS) == (
        "running is 3: no rule is set, so this bot's default holds."
    )


def test_a_servers_rule_counts_use_there_and_a_ceiling_counts_use_on_all_servers() -> None:
    ruleset = [Rule("guild", "", "cost_day", 600, "g"), Rule("operator", "", "cost_day", 900, EVERYWHERE)]
    caps = resolve(ruleset, ANN, DEFAULTS).limits_of("cost_day")
    assert [(cap.limit, cap.usage_scope) for cap in caps] == [(600, "member here"), (900, "member everywhere")]


def test_unlimited_lifts_the_default() -> None:
    terms = resolve([Rule("user", "ann", "cost_day", SETTINGS["cost_day"].maximum, "g")], ANN, DEFAULTS)
    assert terms.limits_of("cost_day") == ()
    assert terms.cost_day == SETTINGS["cost_day"].maximum
    assert terms.deciding_rules["cost_day"] is not None
    one = SETTINGS["cost_day"]
    assert parse_value(one, "unlimited") == parse_value(one, "No limit") == one.maximum, (
        "each of these texts means no limit"
    )
    assert format_setting_value(one, one.maximum) == "no limit", "it is written as every card writes it"


def test_one_blocked_role_blocks_the_member() -> None:
    ruleset = [Rule("role", "artists", "blocked", True, "g"), Rule("role", "members", "blocked", False, "g")]
    assert resolve(ruleset, ANN, DEFAULTS).blocked
    assert not resolve([*ruleset, Rule("user", "ann", "blocked", False, "g")], ANN, DEFAULTS).blocked
    assert resolve([Rule("user", "ann", "blocked", True, EVERYWHERE)], ANN, DEFAULTS).blocked


def test_lists_of_several_roles_add_up_and_a_ceiling_cuts_them() -> None:
    ruleset = [Rule("role", "artists", "models", ("a", "b"), "g"), Rule("role", "members", "models", ("c",), "g")]
    assert resolve(ruleset, ANN, DEFAULTS).models == ("a", "b", "c")
    capped = resolve([*ruleset, Rule("operator", "", "models", ("b", "c", "d"), EVERYWHERE)], ANN, DEFAULTS)
    assert capped.models == ("b", "c")
    assert not capped.allows("models", "a")


def test_an_invalid_rule_is_ignored() -> None:
    wrong: list[RuleValue] = [True, "many", ("a",), -1, 10**12, ""]
    ruleset = [
        Rule("guild", "", name, value, "g")
        for name, one in SETTINGS.items()
        for value in wrong
        if not one.is_valid(value)
    ]
    assert len(ruleset) > 100
    strange = [Rule("guild", "", "of a later version", 1, "g"), Rule("user", "ann", "words", ("a",), "g")]
    assert resolve([*ruleset, *strange], ANN, DEFAULTS) == resolve([], ANN, DEFAULTS)


def test_word_lists_of_the_operator_and_the_server_both_apply() -> None:
    ruleset = [Rule("guild", "", "words", ("b",), "g"), Rule("operator", "", "words", ("a",), EVERYWHERE)]
    assert resolve(ruleset, ANN, DEFAULTS).words == ("a", "b")


def test_shared_limits_apply_side_by_side_and_a_servers_budget_replaces_the_general_one() -> None:
    ruleset = [
        Rule("guild", "", "together_cost_day", 100, "g"),
        Rule("channel", "studio", "together_cost_day", 50, "g"),
        Rule("channel", "lobby", "together_cost_day", 5, "g"),
        Rule("operator", "", "together_cost_day", 80, "g"),
        Rule("operator", "", "together_cost_day", 10, EVERYWHERE),
    ]
    caps = resolve(ruleset, ANN, DEFAULTS).limits_of("together_cost_day")
    assert sorted((cap.limit, cap.usage_scope) for cap in caps) == [(50, "channel"), (80, "guild"), (100, "guild")]
    running = RunningLimits.from_rules([replace(rule, setting="together_running") for rule in ruleset])
    assert (running.limit_of("g"), running.limit_of("other")) == (80, 10)
    assert running.channel_limits_of("g") == {"studio": 50, "lobby": 5}


# Values as text


@settings(deadline=None, max_examples=400)
@given(st.sampled_from(sorted(SETTINGS)).flatmap(lambda name: st.tuples(st.just(name), values(SETTINGS[name]))))
def test_a_written_value_reads_back_the_same(drawn: tuple[str, RuleValue]) -> None:
    name, value = drawn
    one = SETTINGS[name]
    if one.kind == "texts":
        assert isinstance(value, tuple)
        assert parse_list(one, list(value)) == value
    else:
        assert parse_value(one, format_setting_value(one, value)) == value


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("cost_day", "30 min", 1800),
        ("cost_day", "2h", 7200),
        ("cost_day", "1800", 1800),
        ("cost_day", "1.5 h", 5400),
        ("cost_day", "1 h 30 minutes", 5400),
        ("cost_day", "Unlimited", 10**9),
        ("cost_month", "2 days", 172_800),
        ("pixels", "512x512", 512 * 512),
        ("pixels", "512", 512 * 512),
        ("pixels", "768×512", 768 * 512),
        ("samplers", "euler, DDIM", ("ddim", "euler")),
        ("samplers", "all", ALL),
        ("commands", "none", ()),
        ("models", "second, embedded", ("embedded", "second")),
        ("blocked", "Yes", True),
        ("previews", "off", False),
        ("results", "Private", "private"),
        ("reports", "<#123>", "123"),
        ("words", "one, two\nthree", ("one", "three", "two")),
        ("patterns", "a{1,3}\nb", ("a{1,3}", "b")),
        ("long_ping", "2 min", 120),
        ("running", " 5 ", 5),
    ],
)
def test_values_are_read_as_admins_type_them(name: str, text: str, value: RuleValue) -> None:
    assert parse_value(SETTINGS[name], text) == value


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("running", "many", "running cannot be “many”: it takes a whole number from 1 to 1000."),
        ("running", "0", "running cannot be “0”: it takes a whole number from 1 to 1000."),
        ("running", "", "running needs a value: it takes a whole number from 1 to 1000."),
        ("cost_day", "soon", "“soon”: it takes device time such as “30 min”, “2 h”, “1800” (seconds) or “no limit”."),
        ("cost_day", "5 parsecs", "cost_day cannot be “5 parsecs”"),
        ("pixels", "9000x9000", "from 16x16 to 4096x4096"),
        ("samplers", "eulr", "the nearest is euler. It takes ddpm, ddim, euler, euler_karras, "),
        ("results", "secret", "results cannot be “secret”: it takes public or private or choice."),
        ("blocked", "maybe", "blocked cannot be “maybe”: it takes on or off."),
        ("models", "../etc", "models cannot be “../etc”: it takes names, separated by commas, all or none."),
        ("words", "x" * 101, "A forbidden word has 1 to 100 characters; this one has 101."),
        ("words", ",,", "words takes at least one; to have none, unset it."),
        ("words", ",".join(f"w{n}" for n in range(501)), "words takes at most 500; these are 501."),
        ("running", "9" * 70_000, "That is too long for running"),
    ],
)
def test_each_mistake_is_one_clear_sentence(name: str, text: str, said: str) -> None:
    with pytest.raises(UserError) as refused:
        parse_value(SETTINGS[name], text)
    assert said in refused.value.sentence
    assert len(refused.value.sentence) < 250


@settings(deadline=None)
@given(st.sampled_from(sorted(SETTINGS)), st.text(max_size=60))
def test_any_text_is_read_or_refused(name: str, text: str) -> None:
    one = SETTINGS[name]
    with contextlib.suppress(UserError):
        value = parse_value(one, text)
        assert one.kind == "texts" or parse_value(one, format_setting_value(one, value)) == value


def test_a_setting_is_found_or_the_nearest_is_suggested() -> None:
    assert find_setting(" Cost-Day ") is SETTINGS["cost_day"]
    with pytest.raises(UserError, match="There is no setting “cost_dya”; the nearest is cost_day"):
        find_setting("cost_dya")


# Changes


@pytest.mark.slow
@settings(deadline=None)
@given(rules(), rules())
def test_an_import_reaches_its_rules_and_undo_restores_the_old_ones(old: list[Rule], new: list[Rule]) -> None:
    before = {rule.key: rule.value for rule in old if rule.guild == "g"}
    target = {rule.key: rule.value for rule in new if rule.guild == "g" and rule.scope != "operator"}
    target = {key: value for key, value in target.items() if key[2] != "closed"}
    try:
        steps = planned_changes.plan_import(before, target)
    except UserError:
        return
    after = _apply(before, steps)
    untouched = {key: value for key, value in before.items() if key[0] == "operator" or key[2] == "closed"}
    assert after == {**untouched, **target}
    change = RuleChange(1, "g", 0.0, "ann", "Ann", "import", steps)
    assert _apply(after, planned_changes.plan_undo(after, change, None)) == before


def _apply(before: dict, steps: tuple[RuleStep, ...]) -> dict:
    after = dict(before)
    for step in steps:
        assert after.get(step.key) == step.before
        after.pop(step.key, None)
        if step.after is not None:
            after[step.key] = step.after
    return after


def test_a_setting_is_refused_where_it_makes_no_sense() -> None:
    for one, guild, scope, subject in (
        ("words", "g", "user", "ann"),
        ("running", EVERYWHERE, "guild", ""),
        ("running", "g", "user", ""),
        ("running", "g", "guild", "ann"),
        ("running", "g", "user", "x" * 65),
        ("reports", EVERYWHERE, "operator", ""),
    ):
        with pytest.raises(UserError):
            planned_changes.check_scope(SETTINGS[one], guild, scope, subject)  # pyright: ignore[reportArgumentType]
    planned_changes.check_scope(SETTINGS["running"], EVERYWHERE, "user", "ann")


def test_a_server_has_a_bounded_number_of_rules() -> None:
    many: dict = {("user", f"u{n}", "running"): 1 for n in range(planned_changes.MAX_RULES)}
    with pytest.raises(UserError, match="A server has at most 1000 rules; it has 1000, and these are 1 more"):
        planned_changes.plan_rule(many, ("user", "one more", "running"), 2)
    assert planned_changes.plan_rule(many, ("user", "u1", "running"), 2)
    for scope, name, value in (("guild", "closed", "abuse"), ("operator", "running", 1)):
        assert planned_changes.plan_rule(many, (scope, "", name), value), "a full server can still be closed"


def test_undo_cannot_exceed_the_number_of_rules_of_a_server() -> None:
    first = {("user", f"u{n}", "running"): 1 for n in range(planned_changes.MAX_RULES)}
    wiped = RuleChange(
        1, "g", 0.0, "ann", "Ann", "import", planned_changes.plan_import(first, {("user", "x", "queued"): 1})
    )
    now: dict = {("user", f"v{n}", "running"): 1 for n in range(5)} | {("user", "x", "queued"): 1}
    with pytest.raises(UserError, match="A server has at most 1000 rules; it has 6, and these are 999 more"):
        planned_changes.plan_undo(now, wiped, None)
    assert planned_changes.plan_undo({("user", "x", "queued"): 1}, wiped, None)


def test_all_rules_of_a_server_have_a_limited_length_together() -> None:
    models = tuple(f"{n:064}" for n in range(50))
    many: dict = {("user", f"u{n}", "models"): models for n in range(62)}
    with pytest.raises(UserError, match="All rules of a server have at most 200,000 characters together"):
        planned_changes.plan_rule(many, ("user", "one more", "models"), models)
    wiped = RuleChange(
        1, "g", 0.0, "ann", "Ann", "import", planned_changes.plan_import(many, {("user", "x", "models"): models})
    )
    with pytest.raises(UserError, match="Shorten or remove some lists first"):
        planned_changes.plan_undo(
            {("user", "x", "models"): models, ("user", "y", "models"): models[:45], ("user", "z", "models"): models},
            wiped,
            None,
        )
    assert planned_changes.plan_rule(many, ("user", "u1", "models"), models[:3])


def test_presets_set_only_valid_values() -> None:
    for one in planned_changes.PRESETS.values():
        for (scope, subject, name), value in planned_changes.preset_rules(one).items():
            planned_changes.check_scope(SETTINGS[name], "g", "guild", "")
            assert (scope, subject, parse_value(SETTINGS[name], format_setting_value(SETTINGS[name], value))) == (
                "guild",
                "",
                value,
            )
    assert planned_changes.find_preset("Large-Server").name == "large server"
    with pytest.raises(UserError, match="There is no preset “contst”; the nearest is contest"):
        planned_changes.find_preset("contst")


def test_a_change_is_described_in_words() -> None:
    step = RuleStep("role", "7", "cost_day", 1800, 3600)
    assert describe_step(step, {"7": "@artists"}) == "cost_day for @artists: 30 min → 1 h"
    assert summarise_change(RuleChange(4, "g", 0.0, "ann", "Ann", "set", (step,), None, 9)) == (
        "4: set by Ann: cost_day for role 7: 30 min → 1 h (undone by 9)"
    )


def test_a_closing_reason_has_a_limited_length_and_names_who_closed() -> None:
    assert planned_changes.closed_value("too much. ", "Ann") == "too much (closed by Ann)"
    assert planned_changes.closed_value("", "Ann") == "no reason given (closed by Ann)"
    assert len(planned_changes.closed_value("x" * 5000, "y" * 500)) <= SETTINGS["closed"].maximum
