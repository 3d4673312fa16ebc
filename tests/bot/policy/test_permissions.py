"""Permissions: the table of `bot.policy.permissions`, checked cell by cell against a second table written by hand."""

from __future__ import annotations

import ast
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from bot.domain.dto import KeyScope, Member
from bot.policy.permissions import (
    CORE_PERMISSIONS,
    KEY_SCOPES,
    PERMISSIONS,
    ROLES,
    Action,
    JobRef,
    Role,
    forbidden_reason,
    job_ref,
    role_of,
    scope_refusal,
)
from shared.feature_rows import read_feature_rows
from shared.sample_views import make_view

ROOT = Path(__file__).parents[3]
HERE = "discord:1"
ELSEWHERE = "discord:2"
AUTHOR = "discord:author"
DIRECT = f"discord:dm:{AUTHOR.removeprefix('discord:')}"

# The roles behind each word of the table below.
WHO: dict[str, set[Role]] = {
    "everyone": {"member", "moderator", "admin", "owner", "operator"},
    "moderators": {"moderator", "admin", "owner", "operator"},
    "admins": {"admin", "owner", "operator"},
    "owner": {"owner", "operator"},
    "operator": {"operator"},
    "nobody": set(),
}
# The columns: no job, or the member's own; another member's job of this server; another member's private job; a job
# of another server ("-": the action is about no job); and whether it works in a conversation with the bot.
EXPECTED = """
imagine     everyone    -           -           -         direct
blend       everyone    -           -           -         direct
describe    everyone    -           -           -         direct
queue       everyone    -           -           -         direct
mine        everyone    -           -           -         direct
info        everyone    -           -           -         direct
prefer      everyone    -           -           -         direct
help        everyone    -           -           -         direct
cancel      everyone    moderators  moderators  operator  direct
pause       everyone    moderators  moderators  operator  direct
steer       everyone    nobody      nobody      nobody    direct
upscale     everyone    everyone    nobody      nobody    direct
vary        everyone    everyone    nobody      nobody    direct
reroll      everyone    everyone    nobody      nobody    direct
remix       everyone    everyone    nobody      nobody    direct
reproduce   everyone    everyone    nobody      nobody    direct
finish      everyone    everyone    nobody      nobody    direct
edit        everyone    everyone    nobody      nobody    direct
zoom        everyone    everyone    nobody      nobody    direct
pan         everyone    everyone    nobody      nobody    direct
branch      everyone    everyone    nobody      nobody    direct
walk        everyone    everyone    nobody      nobody    direct
prompt      everyone    everyone    nobody      nobody    direct
film        everyone    everyone    nobody      nobody    direct
details     everyone    everyone    nobody      nobody    direct
favourite   everyone    everyone    nobody      nobody    direct
envelope    everyone    everyone    nobody      nobody    direct
delete      everyone    moderators  moderators  operator  direct
report      nobody      everyone    nobody      nobody    direct
approve     moderators  moderators  moderators  operator  direct
deny        moderators  moderators  moderators  operator  direct
dismiss     moderators  moderators  moderators  operator  direct
settings    moderators  -           -           -         server
explain     moderators  -           -           -         server
set         admins      -           -           -         server
close       owner       -           -           -         server
budget      operator    -           -           -         direct
"""
RELATIONS = ("none", "own", "another's", "private", "elsewhere")
# Every sentence that a refused member may read.
SENTENCES = """
That works only in a server: use it there.
That job belongs to another server.
That job is private: only its author may use it.
This one is yours: delete it instead.
Only Ann and moderators (who may manage messages in the whole server) may cancel this job.
Only Ann and moderators (who may manage messages in the whole server) may pause this job.
Only Ann and moderators (who may manage messages in the whole server) may delete these pictures.
Only Ann may steer this picture while it develops.
Only moderators (who may manage messages in the whole server) may dismiss a report.
Only moderators (who may manage messages in the whole server) may keep held pictures hidden.
Only moderators (who may manage messages in the whole server) may look at and show held pictures.
Only moderators (who may manage messages in the whole server) may look at this server's settings.
Only moderators (who may manage messages in the whole server) may see which rule decides.
Only admins (who may manage this server) may change this server's settings.
Only the server's owner may close or open this server.
Only this bot's operator may set what a whole server may spend.
"""


EXPECTED_ROWS = [*EXPECTED.strip().split("\n"), *read_feature_rows("permissions")]
REFUSALS = {*SENTENCES.strip().split("\n"), *read_feature_rows("refusals")}


def expected_cells(action: str) -> Sequence[str]:
    return next(row.split()[1:] for row in EXPECTED_ROWS if row.split()[0] == action)


ABOUT_JOBS: list[Action] = [action for action in PERMISSIONS if expected_cells(action)[1] != "-"]


FLAGS: dict[Role, str] = {
    "moderator": "is_moderator",
    "admin": "is_admin",
    "owner": "is_owner",
    "operator": "is_operator",
}
MODERATED: set[Action] = {"cancel", "pause", "delete", "approve", "deny", "dismiss"}


def make_member(role: Role, *, author: bool = False, guild: str = HERE) -> Member:
    """A member of this role with only the flag that it needs: no flag implies a lower one."""
    member = Member(AUTHOR if author else "discord:other", "Ann" if author else "Bob", guild)
    return member if role == "member" else replace(member, **{FLAGS[role]: True})


def make_case(relation: str, role: Role, *, direct: bool) -> tuple[Member, JobRef | None]:
    """A member in a server or alone with the bot, and the job that they act on."""
    guild_here = DIRECT if direct else HERE
    if relation == "none":
        return make_member(role, guild=guild_here), None
    guild = ELSEWHERE if relation == "elsewhere" else guild_here
    member = make_member(role, author=relation == "own", guild=guild_here)
    return member, JobRef(AUTHOR, "Ann", guild, is_private=relation == "private")


def list_relations(action: Action) -> tuple[str, ...]:
    return ("none",) if expected_cells(action)[1] == "-" else RELATIONS


def every_case() -> Iterator[tuple[Action, str, Role, bool]]:
    for action in PERMISSIONS:
        for relation, role, direct in itertools.product(list_relations(action), ROLES, (False, True)):
            yield action, relation, role, direct


@pytest.mark.parametrize("action", PERMISSIONS)
def test_the_permission_table_matches_the_expected_one(action: Action) -> None:
    own_cell, others_cell, private_cell, elsewhere_cell, place_cell = expected_cells(action)
    cells = {
        "none": own_cell,
        "own": own_cell,
        "another's": others_cell,
        "private": private_cell,
        "elsewhere": elsewhere_cell,
    }
    for relation in list_relations(action):
        cell = cells[relation]
        for direct in (False, True):
            allowed_roles = {
                role
                for role in ROLES
                for member, subject in [make_case(relation, role, direct=direct)]
                if forbidden_reason(action, member, subject, in_direct_message=direct) is None
            }
            assert allowed_roles == (set() if direct and place_cell == "server" else WHO[cell]), (relation, direct)


def test_an_action_about_no_job_rejects_a_job() -> None:
    for action in set(PERMISSIONS) - set(ABOUT_JOBS):
        with pytest.raises(ValueError, match="acts on no job"):
            forbidden_reason(action, make_member("operator"), JobRef(AUTHOR, "Ann", HERE))


def test_the_expected_table_lists_every_action() -> None:
    assert sorted(row.split()[0] for row in EXPECTED_ROWS) == sorted(PERMISSIONS)


def test_an_author_can_always_cancel_and_delete_their_own_jobs() -> None:
    jobs = [
        JobRef(AUTHOR, "Ann", guild, private_cell)
        for guild in (HERE, ELSEWHERE, DIRECT)
        for private_cell in (False, True)
    ]
    for role, subject, direct in itertools.product(ROLES, jobs, (False, True)):
        author = make_member(role, author=True)
        assert forbidden_reason("cancel", author, subject, in_direct_message=direct) is None
        assert forbidden_reason("delete", author, subject, in_direct_message=direct) is None


def test_only_the_operator_moderates_jobs_of_another_server() -> None:
    for action, role in itertools.product(ABOUT_JOBS, ROLES):
        member, subject = make_case("elsewhere", role, direct=False)
        allowed_roles = forbidden_reason(action, member, subject) is None
        assert allowed_roles == (role == "operator" and action in MODERATED)


def test_plain_members_cannot_use_private_jobs_of_others() -> None:
    for action in ABOUT_JOBS:
        member, subject = make_case("private", "member", direct=False)
        assert forbidden_reason(action, member, subject) is not None


def test_only_the_author_can_use_a_private_job() -> None:
    """Moderators may delete a private job or decide about its held pictures, but not use it."""
    for action, role in itertools.product(set(ABOUT_JOBS) - MODERATED, ROLES):
        member, subject = make_case("private", role, direct=False)
        assert forbidden_reason(action, member, subject) == "That job is private: only its author may use it."


def test_who_takes_part_in_a_picture_may_steer_it_and_do_nothing_else() -> None:
    for is_private in (False, True):
        joined = JobRef(AUTHOR, "Ann", HERE, is_private, is_joined=True)
        for role in ROLES:
            allowed = {action for action in ABOUT_JOBS if not forbidden_reason(action, make_member(role), joined)}
            assert allowed == {"steer"}
        assert forbidden_reason("steer", make_member("member", guild=ELSEWHERE), joined) is not None


def test_a_higher_role_may_do_all_that_a_lower_role_may() -> None:
    rows: set[tuple[Action, str, bool]] = {(action, relation, direct) for action, relation, _, direct in every_case()}
    for action, relation, direct in rows:
        row = [
            forbidden_reason(action, *make_case(relation, role, direct=direct), in_direct_message=direct) is None
            for role in ROLES
        ]
        assert row == sorted(row), (action, relation)


def test_the_highest_role_counts() -> None:
    for values in itertools.product((False, True), repeat=4):
        member = replace(make_member("member"), **dict(zip(FLAGS.values(), values, strict=True)))
        set_roles = [role for role, is_set in zip(FLAGS, values, strict=True) if is_set]
        assert role_of(member) == (set_roles[-1] if set_roles else "member")


def test_every_refusal_is_a_known_sentence() -> None:
    refusals = set[str]()
    for action, relation, role, direct in every_case():
        sentence = forbidden_reason(action, *make_case(relation, role, direct=direct), in_direct_message=direct)
        refusals |= {sentence} if sentence else set()
    assert refusals == REFUSALS


def test_the_subject_is_taken_from_the_view() -> None:
    assert job_ref(make_view(is_private=True)) == JobRef("discord:1", "Alice", "discord:2", True)


def test_a_key_needs_the_scope_of_the_action_besides_the_role() -> None:
    for action, relation, role, direct in every_case():
        member, subject = make_case(relation, role, direct=direct)
        scope = PERMISSIONS[action].scope
        refusal = forbidden_reason(action, member, subject, in_direct_message=direct)
        for scopes in (frozenset[KeyScope](), frozenset[KeyScope](KEY_SCOPES)):
            program = replace(member, scopes=scopes)
            reason = forbidden_reason(action, program, subject, in_direct_message=direct)
            if scope in scopes:
                assert reason == (None if PERMISSIONS[action].scope_suffices else refusal)
            else:
                assert reason is not None


def test_a_key_may_never_delete_or_administer() -> None:
    unscoped = {action for action in CORE_PERMISSIONS if PERMISSIONS[action].scope is None}
    assert unscoped == {
        "envelope",
        "delete",
        "report",
        "approve",
        "deny",
        "dismiss",
        "settings",
        "explain",
        "set",
        "close",
        "budget",
    }
    every_scope = frozenset[KeyScope](KEY_SCOPES)
    assert scope_refusal("delete", every_scope) == "No key may delete these pictures."
    assert scope_refusal("film", frozenset()) == "This key may not see this film: that needs the scope read."
    assert scope_refusal("file", frozenset()) == "This key may not look at this: that needs the scope read."
    assert scope_refusal("delete", None) is None


# The functions of `bot` that check an action, and `respond`, which checks it before it answers.
CHECKS = (
    "declare",
    "forbidden_reason",
    "require_permission",
    "_require_permission",
    "_check_permission",
    "respond",
    "require_permitted",
    "refusal_reason",
    "check_original",
)


def actions_in_code() -> set[str]:
    """Every action that the code checks: in a call, or in a mapping of buttons, forms and commands."""
    constants = set[str]()
    for path in (ROOT / "bot").rglob("*.py"):
        if path == ROOT / "bot/policy/permissions.py":  # the table itself
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and _name(node.func) in CHECKS:
                constants |= {one.value for one in ast.walk(node) if isinstance(one, ast.Constant)}
            if isinstance(node, ast.AnnAssign) and "Action" in ast.dump(node.annotation) and node.value:
                constants |= {one.value for one in ast.walk(node.value) if isinstance(one, ast.Constant)}
    return {constant for constant in constants if isinstance(constant, str)}


def _name(function: ast.expr) -> str:
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def test_the_code_uses_every_row_of_the_table() -> None:
    assert set(PERMISSIONS) - actions_in_code() == set()
