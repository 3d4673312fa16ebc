"""The settings' cards within Discord's limits, for any rules and any text in them."""

from __future__ import annotations

import re
import string
from typing import Any, get_args

import discord
import msgspec
import pytest
from discord import app_commands, ui
from hypothesis import given, settings
from hypothesis import strategies as st
from simcord.components import COMPONENTS_V2_FLAG, validate_components, validate_modal, walk_components

from bot.discord.settings import cards, commands, moderation, texts
from bot.discord.settings.responses import HANDLERS, make_button
from bot.domain.dto import Member
from bot.jobs.model_catalog import SHIPPED_MODEL
from bot.policy.limits import Limits
from bot.policy.rules.catalogue import SETTINGS, Setting
from bot.policy.rules.effective_rules import resolve
from bot.policy.rules.explanations import Explanation
from bot.policy.rules.rule import SCOPES, Rule, RuleChange, RuleStep, RuleValue, Scope
from engine.contract import Sampler
from tools.loopback.known_deviations import find_unexplained
from tools.loopback.openapi import FILE, RequestValidator

GUILD = "discord:5"
NASTY = "@everyone <@5> **x** [a](http://b.c) `y` \u202e" + "z" * 300
ids = st.integers(10**17, 10**19).map(str)


def values(one: Setting) -> st.SearchStrategy[RuleValue]:
    if one.kind == "switch":
        return st.booleans()
    if one.kind in ("number", "cost", "size", "seconds"):
        return st.integers(one.minimum, one.maximum)
    if one.kind == "choices":
        return st.lists(st.sampled_from(one.choices), unique=True).map(tuple)
    if one.kind in ("names", "texts"):
        return st.lists(st.text(min_size=1, max_size=90) | st.just(NASTY), max_size=30).map(tuple)
    if one.kind == "choice":
        return st.sampled_from(one.choices)
    return st.text(min_size=1, max_size=300) | st.just(NASTY[:300]) if one.kind == "text" else ids


@st.composite
def rules(draw: st.DrawFn) -> Rule:
    one = SETTINGS[draw(st.sampled_from(sorted(SETTINGS)))]
    scope: Scope = draw(st.sampled_from(one.scopes))
    subject = "" if scope in ("operator", "guild") else draw(ids)
    return Rule(scope, f"discord:{subject}" if scope == "user" else subject, one.name, draw(values(one)), GUILD)


@st.composite
def changes(draw: st.DrawFn) -> RuleChange:
    drawn_rules = draw(st.lists(rules(), max_size=12))
    steps = tuple(
        RuleStep(r.scope, r.subject, r.setting, draw(st.none() | st.just(r.value)), r.value) for r in drawn_rules
    )
    name = draw(st.text(max_size=128) | st.just(NASTY[:128]))
    action = draw(st.sampled_from(sorted(texts.ACTION_VERBS)))
    return RuleChange(
        draw(st.integers(1, 10**9)),
        GUILD,
        1.7e9,
        "discord:1",
        name,
        action,
        steps,
        None,
        draw(st.none() | ids.map(int)),
    )


def check_card(view: ui.LayoutView) -> list[dict[str, Any]]:
    """Assert that Discord would accept the card and that each id has a handler; return the components."""
    components = validate_components(view.to_components(), flags=COMPONENTS_V2_FLAG)
    parts = list(walk_components(components))
    assert len(parts) <= 40
    text = "".join(each["content"] for each in parts if each["type"] == 10)
    assert "@everyone" not in text
    assert re.search(r"(?<!\\)\]\(", text) is None, "no link from a member"
    for each in parts:
        if "custom_id" in each and not each.get("disabled"):
            assert each["custom_id"].split(":")[1] in HANDLERS
    return parts


@settings(max_examples=25, deadline=None)
@given(st.lists(rules(), max_size=60, unique_by=lambda rule: rule.key), st.integers(0, 5))
def test_overview_and_exceptions_fit_discords_limits(rule_list: list[Rule], page: int) -> None:
    effective_rules = resolve(rule_list, Member("", "", GUILD), Limits())
    costs = texts.describe_model_costs([msgspec.structs.replace(SHIPPED_MODEL, name="m" * 64)] * 30)
    assert costs[-1] == "and 22 more"
    notice = cards.build_notice("✅ Something changed.", 10**9)
    check_card(cards.build_overview(effective_rules, rule_list, notice, costs))
    for scope in ("channel", "role", "user"):
        check_card(cards.build_exceptions(scope, rule_list, page, cards.build_notice("✅ Something changed.", 10**9)))


@settings(max_examples=25, deadline=None)
@given(st.lists(changes(), max_size=12, unique_by=lambda change: change.number), st.integers(0, 3))
def test_the_history_fits_discords_limits(change_list: list[RuleChange], page: int) -> None:
    check_card(
        cards.build_history(
            change_list, page, [1], cards.build_notice(texts.describe_undo(change_list[0]) if change_list else "x")
        )
    )
    for change in change_list:
        check_card(cards.build_result(texts.describe_change(change), undo_number=change.number))
        check_card(
            cards.build_question(
                ["## Preset", *texts.format_steps(change.steps)], make_button("Apply", "apply", "contest")
            )
        )


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_the_forms_of_each_setting_are_valid(name: str) -> None:
    one = SETTINGS[name]
    for form in (cards.build_change_form(one, None), cards.build_rule_form("user", f"discord:{2**63}", one, None)):
        validate_modal(form.to_dict())
        assert len(form.custom_id) <= 100
        assert len(form.title) <= 45


def test_the_other_forms_are_valid() -> None:
    all_forms = [cards.build_add_form(scope) for scope in ("channel", "role", "user")]
    all_forms += [cards.build_words_form(["a"] * 500, ["b"], "a" * 16), cards.build_close_form(NASTY)]
    for form in all_forms:
        modal = validate_modal(form.to_dict())
        assert modal["custom_id"].split(":")[1] in HANDLERS
        assert modal["components"]


@pytest.mark.skipif(not FILE.exists(), reason="Discord's own description of its API is not there")
def test_every_form_and_card_fits_discords_openapi_schema() -> None:
    judge = RequestValidator()
    callback = f"/interactions/{10**17}/token/callback"
    all_forms: list[ui.Modal] = [cards.build_words_form(["a"], [], "a" * 16), cards.build_close_form("x")]
    all_forms += [cards.build_add_form(scope) for scope in ("channel", "role", "user")]
    for one in SETTINGS.values():
        all_forms += [cards.build_change_form(one, None), cards.build_rule_form("user", f"discord:{10**17}", one, None)]
    for form in all_forms:
        judge.check_request("POST", callback, {}, {"type": 9, "data": form.to_dict()})
    rule_list = [Rule("role", "7", "running", 3, GUILD), Rule("guild", "", "closed", "x", GUILD)]
    effective_rules = resolve(rule_list, Member("", "", GUILD), Limits())
    change = RuleChange(1, GUILD, 1.0, "a", "b", "set", ())
    for view in (
        cards.build_overview(effective_rules, rule_list, cards.build_notice("x", 3)),
        cards.build_exceptions("role", rule_list, 0),
        cards.build_history([change], 0, [1]),
        cards.build_explanation("a", [("", ["b"]), ("c", ["d"])], "5"),
        cards.build_result("x", undo_number=1),
        cards.build_question(["a"], make_button("x", "apply", "y")),
    ):
        body = {"flags": COMPONENTS_V2_FLAG | 64, "components": view.to_components(), "allowed_mentions": {"parse": []}}
        judge.check_request("POST", callback, {}, {"type": 4, "data": body})
    assert find_unexplained(judge.findings) == []


def test_every_setting_has_a_title_and_a_place() -> None:
    names = {*texts.MEMBER_LIMITS, *texts.SHARED_LIMITS, *texts.SWITCHES, "words", "patterns", "closed", "blocked"}
    assert names == set(SETTINGS)
    assert all(len(title) <= 45 for title in (setting.title for setting in SETTINGS.values()))


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_suggestions_fit_discords_limits(name: str) -> None:
    role_names = {"1": NASTY, "a" * 101: "too long to be a choice"}
    for typed_text in ("", "o", "ddim, ", "xyz"):
        suggestions = commands.value_choices(SETTINGS[name], typed_text, role_names)
        assert len(suggestions) <= 25
        assert all(1 <= len(each.name) <= 100 and 1 <= len(str(each.value)) <= 100 for each in suggestions)


def test_a_list_is_completed_name_by_name() -> None:
    suggestions = commands.value_choices(SETTINGS["samplers"], "ddim, eu", {})
    names = [name for name in get_args(Sampler) if "eu" in name]
    assert "euler" in names
    assert [each.value for each in suggestions] == [f"ddim, {name}" for name in names]
    assert "all" in [each.value for each in commands.value_choices(SETTINGS["samplers"], "", {})]


def test_the_commands_are_within_discords_limits() -> None:
    tree = app_commands.CommandTree(discord.Client(intents=discord.Intents(guilds=True)))
    for group in (commands.settings, moderation.moderation):
        tree.add_command(group)
    for group in tree.get_commands():
        data = group.to_dict(tree)
        length = sum(len(each[part]) for each in walk_options(data) for part in ("name", "description") if part in each)
        assert length < 8000
        assert len(data["options"]) <= 25
        for each in walk_options(data):
            assert 1 <= len(each["description"]) <= 100
            assert set(each["name"]) <= {*string.ascii_lowercase, "_"}
            assert len(each.get("choices") or ()) <= 25
    assert {scope for one in SETTINGS.values() for scope in one.scopes} == set(SCOPES)


def walk_options(node: Any) -> list[Any]:
    return [node, *(each for child in node.get("options") or () for each in walk_options(child))]


def test_no_limit_reads_the_same_everywhere() -> None:
    maximum = SETTINGS["cost_month"].maximum
    rule_list = [Rule("guild", "", "cost_month", maximum, GUILD)]
    components = check_card(cards.build_overview(resolve(rule_list, Member("", "", GUILD), Limits()), rule_list))
    text = "\n".join(each["content"] for each in components if each["type"] == 10)
    assert "Device time a month · **no limit**" in text
    assert "### All together\nRunning · no limit\nWaiting · no limit\nTime a day · no limit" in text
    assert "unlimited" not in str(components)
    assert "now no limit: how many jobs of all members run at once" in str(components)


def test_the_lines_of_a_change_are_in_the_order_of_the_card() -> None:
    names = ("long_ping", "cost_day", "running")
    lines = texts.format_steps([RuleStep("guild", "", name, None, 60) for name in names])
    assert [line.split(":")[0] for line in lines] == [
        "• Running at once",
        "• Device time a day",
        "• Ping after long jobs",
    ]


@settings(max_examples=25, deadline=None)
@given(st.lists(rules(), max_size=40, unique_by=lambda rule: rule.key), st.text(max_size=400) | st.just(NASTY * 2))
def test_an_explanation_fits_discords_limits(rule_list: list[Rule], reason: str) -> None:
    each = [Explanation(one.setting, reason[:200], "", reason, one, 1.7e9, 0.5) for one in rule_list]
    check_card(cards.build_explanation("## What holds", texts.build_sections(each), "5"))


def test_what_stops_a_member_comes_first_and_then_the_fullest_limit() -> None:
    blocked_reason = Explanation("blocked", "on", "", "why", Rule("user", "discord:5", "blocked", True, GUILD))
    full_use = Explanation("cost_day", "1 h", "1 h of 1 h", "why", None, 1.7e9, 1.0)
    half_use = Explanation("running", "2", "1 of 2", "why", None, None, 0.5)
    ((heading, lines), (second_heading, second_lines)) = texts.build_sections(
        [half_use, full_use, Explanation("steps", "1000", "", "why"), blocked_reason]
    )
    assert (heading, second_heading) == ("Now", "By default")
    assert [line.split("\n")[0] for line in lines] == [
        "⛔ Blocked · **yes**",
        "⛔ Device time a day · **1 h of 1 h**, some frees <t:1700000000:R>",
        "Running at once · **1 of 2**",
    ]
    assert second_lines == ["-# Most steps · 1000"]
