"""The permission table: which role may do what, on whose job, and where. Pure.

Front ends ask `forbidden_reason` before they act, and the tests check every cell. Quotas are elsewhere
(`bot.policy.rules`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal, get_args

from bot.domain.dto import JobView, KeyScope, Member
from bot.domain.feature import load_features, merge_rows
from bot.domain.permission import Action, Permission, Role

JobRelation = Literal["none", "own", "another's", "private", "elsewhere", "joined"]

ROLES: tuple[Role, ...] = get_args(Role)


def _allow_everyone(phrase: str, scope: KeyScope | None = None, *, is_limitable: bool = False) -> Permission:
    """Return a row for everyone, about no job."""
    return Permission(phrase, concerns_jobs=False, scope=scope, is_limitable=is_limitable)


def _allow_viewers(phrase: str, scope: KeyScope | None = "imagine") -> Permission:
    """Return a row for every member who sees the picture, at their own expense; a private picture: its author only."""
    return Permission(phrase, others_role="member", scope=scope, is_limitable=True)


def _allow_author_and_moderators(phrase: str, scope: KeyScope | None = None) -> Permission:
    return Permission(phrase, others_role="moderator", private_role="moderator", operator_elsewhere=True, scope=scope)


def _allow_moderators(phrase: str) -> Permission:
    """Return a row for moderators only, on their own jobs too."""
    return replace(_allow_author_and_moderators(phrase), own_role="moderator")


def _allow_guild_role(phrase: str, role: Role) -> Permission:
    """Return a row about the rules of a server."""
    return Permission(phrase, own_role=role, in_direct_messages=False, concerns_jobs=False)


# The order of limitable actions is that of the setting `commands`.
CORE_PERMISSIONS: Mapping[Action, Permission] = MappingProxyType(
    {
        "imagine": _allow_everyone("ask for pictures", "imagine", is_limitable=True),
        "vary": _allow_viewers("vary this picture"),
        "reroll": _allow_viewers("reroll this"),
        "remix": _allow_viewers("remix this"),
        "reproduce": _allow_viewers("reproduce this"),
        "finish": _allow_viewers("finish this draft"),
        "blend": _allow_everyone("blend pictures", "imagine", is_limitable=True),
        "edit": _allow_viewers("change a part of this picture"),
        "zoom": _allow_viewers("zoom out of this picture"),
        "pan": _allow_viewers("pan this picture"),
        "branch": _allow_viewers("branch off from this picture"),
        "walk": _allow_viewers("walk between these pictures"),
        "steer": Permission(
            "steer this picture while it develops", joined_role="member", scope="imagine", is_limitable=True
        ),
        "upscale": _allow_viewers("upscale this picture"),
        "prompt": _allow_viewers("use this prompt"),
        "film": _allow_viewers("see this film", "read"),
        "details": _allow_viewers("see the details of this job", "read"),
        "favourite": _allow_viewers("keep this picture as a favourite"),
        "envelope": _allow_viewers("have these pictures sent to them", None),
        "describe": _allow_everyone("have pictures described", "imagine", is_limitable=True),
        "queue": _allow_everyone("look at the queue", "read", is_limitable=True),
        "mine": _allow_everyone("look through their own jobs", "read"),
        "info": _allow_everyone("look at their limits", "read"),
        "prefer": _allow_everyone("set what they prefer", "imagine"),
        "help": _allow_everyone("read the help", "read"),
        "cancel": _allow_author_and_moderators("cancel this job", "imagine"),
        "pause": _allow_author_and_moderators("pause this job", "imagine"),
        "delete": _allow_author_and_moderators("delete these pictures"),
        "report": Permission("report this", own_role=None, others_role="member"),  # authors delete their own instead
        "approve": _allow_moderators("look at and show held pictures"),
        "deny": _allow_moderators("keep held pictures hidden"),
        "dismiss": _allow_moderators("dismiss a report"),
        "settings": _allow_guild_role("look at this server's settings", "moderator"),
        "explain": _allow_guild_role("see which rule decides", "moderator"),
        "set": _allow_guild_role("change this server's settings", "admin"),
        "close": _allow_guild_role("close or open this server", "owner"),
        "budget": Permission("set what a whole server may spend", own_role="operator", concerns_jobs=False),
    }
)
PERMISSIONS: Mapping[Action, Permission] = MappingProxyType(
    merge_rows(CORE_PERMISSIONS, *(feature.permissions for feature in load_features().values()))
)
LIMITABLE_COMMANDS: tuple[Action, ...] = tuple(name for name, row in PERMISSIONS.items() if row.is_limitable)
KEY_SCOPES: tuple[KeyScope, ...] = (
    "imagine",
    "read",
    *(scope for feature in load_features().values() for scope in feature.key_scopes),
)
LOOK = Permission("look at this", concerns_jobs=False, scope="read")
PRIVATE_JOB = "That job is private: only its author may use it."
OWN_JOB = "This one is yours: delete it instead."  # for `report`, the only action that authors may not do
OTHER_GUILD = "That job belongs to another server."
NO_KEY = "No key may {}."
SCOPE_MISSING = "This key may not {}: that needs the scope {}."
GUILD_ONLY = "That works only in a server: use it there."
ROLE_TITLES: Mapping[Role, str] = MappingProxyType(
    {
        "member": "members",
        "moderator": "moderators (who may manage messages in the whole server)",
        "admin": "admins (who may manage this server)",
        "owner": "the server's owner",
        "operator": "this bot's operator",
    }
)


@dataclass(frozen=True)
class JobRef:
    """The job that an action concerns: its author, that author's name, its server, and whether it is private.

    `is_joined`: the member takes part in its picture.
    """

    author: str
    author_name: str
    guild: str
    is_private: bool = False
    is_joined: bool = False


def job_ref(view: JobView) -> JobRef:
    return JobRef(view.member_id, view.member_name, view.guild, view.is_private)


def role_of(member: Member) -> Role:
    """Return a member's highest role where they are."""
    if member.is_operator:
        return "operator"
    if member.is_owner:
        return "owner"
    if member.is_admin:
        return "admin"
    return "moderator" if member.is_moderator else "member"


def job_relation(member: Member, job: JobRef | None) -> JobRelation:
    """Return how a member relates to the job."""
    if job is None:
        return "none"
    if job.author == member.id:
        return "own"
    if job.guild != member.guild:
        return "elsewhere"
    if job.is_joined:
        return "joined"
    return "private" if job.is_private else "another's"


def least_role(action: Action, relation: JobRelation) -> Role | None:
    """Return the least role that may act; None if nobody may."""
    permission = PERMISSIONS[action]
    if relation == "elsewhere":
        return "operator" if permission.operator_elsewhere else None
    if relation == "another's":
        return permission.others_role
    if relation == "joined":
        return permission.joined_role
    return permission.private_role if relation == "private" else permission.own_role


def scope_refusal(action: str, scopes: frozenset[KeyScope] | None) -> str | None:
    """Return why an API key with these scopes may not act, as a sentence; None if it may, or where no key acts.

    An action that is no row of the table, such as fetching a file, is a look: its scope is `read`.
    """
    permission = PERMISSIONS.get(action, LOOK)
    if scopes is None or permission.scope in scopes:
        return None
    if permission.scope is None:
        return NO_KEY.format(permission.phrase)
    return SCOPE_MISSING.format(permission.phrase, permission.scope)


def _unshared_reason(permission: Permission, relation: JobRelation, job: JobRef | None) -> str:
    if relation == "private":
        return PRIVATE_JOB
    return OWN_JOB if job is None or relation == "own" else f"Only {job.author_name} may {permission.phrase}."


def forbidden_reason(
    action: Action, member: Member, job: JobRef | None = None, *, in_direct_message: bool = False
) -> str | None:
    """Return why `member` may not act, as a sentence for them; None if they may. `in_direct_message`: in a direct
    message with the bot.

    Raises ValueError for a job with an action that concerns no job: the answer would be arbitrary.
    """
    permission = PERMISSIONS[action]
    relation = job_relation(member, job)
    if job is not None and not permission.concerns_jobs:
        raise ValueError(f"{action} acts on no job")
    if reason := scope_refusal(action, member.scopes):
        return reason
    needed_role = least_role(action, relation)
    if in_direct_message and not permission.in_direct_messages:
        return GUILD_ONLY
    if member.scopes is not None and permission.scope_suffices:
        return None
    if needed_role is not None and ROLES.index(role_of(member)) >= ROLES.index(needed_role):
        return None
    if relation == "elsewhere":
        return OTHER_GUILD
    if needed_role is None:
        return _unshared_reason(permission, relation, job)
    author_part = f"{job.author_name} and " if job is not None and permission.own_role == "member" else ""
    return f"Only {author_part}{ROLE_TITLES[needed_role]} may {permission.phrase}."
