"""Rules as YAML: an export imports unchanged, mistakes are named with their line, and YAML bombs are refused."""

from __future__ import annotations

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from bot.domain.errors import UserError
from bot.policy.rules import SETTINGS, Rule, RuleValue, Scope, planned_changes
from bot.policy.rules.catalogue import Setting
from bot.policy.rules.planned_changes import EXCLUDED_SETTINGS, MAX_BYTES, SECTIONS

WORDS = st.from_regex(r"[a-z]{2,10}", fullmatch=True)
TEXTS = st.sets(WORDS, min_size=1, max_size=4).map(lambda some: tuple(sorted(some)))
IDS = st.from_regex(r"(discord:)?[0-9]{1,20}", fullmatch=True)


def values(one: Setting) -> st.SearchStrategy[RuleValue]:
    if one.kind in ("number", "cost", "seconds", "size"):
        return st.integers(one.minimum, one.maximum)
    if one.kind == "switch":
        return st.booleans()
    if one.kind == "choice":
        return st.sampled_from(one.choices)
    if one.kind == "choices":
        return st.integers(0, len(one.choices)).map(lambda most: one.choices[:most])
    if one.kind == "channel":
        return st.integers(1, 10**18).map(str)
    return TEXTS


@st.composite
def rules(draw: st.DrawFn) -> dict[tuple[str, str, str], Rule]:
    ruleset: dict[tuple[str, str, str], Rule] = {}
    for _ in range(draw(st.integers(0, 15))):
        one = SETTINGS[draw(st.sampled_from(sorted(set(SETTINGS) - set(EXCLUDED_SETTINGS))))]
        scopes: list[Scope] = [scope for scope in one.scopes if scope != "operator"]
        scope = draw(st.sampled_from(scopes))
        subject = "" if scope == "guild" else draw(IDS)
        rule = Rule(scope, subject, one.name, draw(values(one)), "g")
        ruleset[rule.key] = rule
    return ruleset


@pytest.mark.slow
@settings(deadline=None)
@given(rules())
def test_exported_rules_import_unchanged(ruleset: dict[tuple[str, str, str], Rule]) -> None:
    text = planned_changes.dump_rules(ruleset.values())
    assert planned_changes.load_rules(text) == {
        key: rule.value for key, rule in ruleset.items() if rule.scope != "operator"
    }
    assert text.startswith("# The rules of one server.")
    assert set(yaml.safe_load(text)) <= {"version", *SECTIONS}


def test_the_import_reads_yaml_as_admins_write_it() -> None:
    ruleset = planned_changes.load_rules(
        """
        # comments are kept out of the way
        version: 1
        server:
          cost_day: 1 h 30 min   # and here
          pixels: 512x512
          previews: off
          words: [one, "two"]
          samplers: euler, ddim
        roles:
          "123": {running: 5, blocked: yes}
        users:
          discord:7:
            steps: 0100
        channels:
        """
    )
    assert ruleset == {
        ("guild", "", "cost_day"): 5400,
        ("guild", "", "pixels"): 512 * 512,
        ("guild", "", "previews"): False,
        ("guild", "", "words"): ("one", "two"),
        ("guild", "", "samplers"): ("ddim", "euler"),
        ("role", "123", "running"): 5,
        ("role", "123", "blocked"): True,
        ("user", "discord:7", "steps"): 100,
    }
    assert (
        planned_changes.load_rules("")
        == planned_changes.load_rules("# nothing\n")
        == planned_changes.load_rules("server:")
        == {}
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("server:\n  runing: 3", "Line 2 of the file: There is no setting “runing”; the nearest is running."),
        ("sever:\n  running: 3", "Line 1 of the file: there is no section “sever”; the nearest is server."),
        ("server:\n  steps: 5000", "Line 2 of the file: steps cannot be “5000”: it takes a whole number"),
        ("server:\n  running: 3\n  running: 4", "Line 3 of the file: “running” appears twice."),
        ("server:\n  closed: no more", "Line 2 of the file: closed cannot be imported: close and open are"),
        ("users:\n  '7':\n    words: [a]", "Line 3 of the file: words cannot be set for a user."),
        ("server: 3", "Line 1 of the file: server must list names and values, as in “running: 3”."),
        ("- 1", "Line 1 of the file: a rules file must list names and values"),
        ("version: 2", "Line 1 of the file: this bot reads version 1, not “2”."),
        ("server:\n  running: [3]", "Line 2 of the file: running takes one value and not a list."),
        ("server:\n  models: [{a: b}]", "Line 2 of the file: models takes a value, or a list of values."),
        ("server:\n  steps: {a: 1}", "Line 2 of the file: steps takes a value"),
        ("roles:\n  ? [a]\n  : 1", "Line 2 of the file: a name must be a text."),
        ("users:\n  '': {steps: 1}", "Line 2 of the file: An id has 1 to 64 printable characters."),
        ("server: &a {steps: 1}\nroles: {'1': *a}", "Line 1 of the file: anchors and aliases (& and *)"),
        ("server: !!python/object/apply:os.system ['true']", "Line 1 of the file: tags (!) are not allowed."),
        ("server: {steps: 1", "Line 1 of the file: expected ',' or '}'"),
        ("server:\n\t- x", "Line 2 of the file: found character"),
        ("a: 1\n---\nb: 2", "it is more than one document"),
        ("[" * 5000, "Line 1 of the file: it is nested too deep."),
        ("server: {words: [" + "a," * 25_000 + "]}", "it has more than"),
        ("\x00", "Line 1 of the file: it is not YAML."),
        ("# " + "x" * MAX_BYTES, "A rules file has at most 64 KiB."),
    ],
)
def test_each_mistake_is_named_with_its_line(text: str, said: str) -> None:
    with pytest.raises(UserError) as refused:
        planned_changes.load_rules(text)
    assert said in refused.value.sentence
    assert len(refused.value.sentence) < 300


def test_an_invalid_id_is_refused() -> None:
    for subject in ('"7\\n8"', '"7\\u202e"'):
        with pytest.raises(UserError, match=r"Line 2 of the file: An id has 1 to 64 printable characters\."):
            planned_changes.load_rules(f"users:\n  {subject}: {{steps: 1}}")
    for section, scope in (("users", "user"), ("roles", "role")):
        with pytest.raises(UserError, match=f"“a.b” is no id: on Discord the id of a {scope} is a number"):
            planned_changes.load_rules(f"{section}:\n  a.b: {{steps: 1}}", "discord:1")
    assert planned_changes.load_rules("users: {a.b: {steps: 1}}", "local")
    assert list(planned_changes.load_rules("users: {'<@7>': {steps: 1}}", "discord:1")) == [
        ("user", "discord:7", "steps")
    ]


BOMB = "a: &a [x,x,x]\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [{','.join(['*' + chr(97 + n)] * 9)}]\n" for n in range(9)
)


def test_a_yaml_bomb_is_refused_at_its_first_anchor() -> None:
    with pytest.raises(UserError, match=r"Line 1 of the file: anchors and aliases"):
        planned_changes.load_rules(BOMB)


@settings(deadline=None)
@given(st.text(max_size=300) | st.text(alphabet="server:rolsunig 0123\n\t-[]{}&*!'\"#,?|>%@", max_size=200))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        ruleset = planned_changes.load_rules(text)
    except UserError:
        return
    assert all(setting in SETTINGS for _, _, setting in ruleset)
