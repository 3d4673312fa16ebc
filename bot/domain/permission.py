"""What an action needs: the roles that may act, and the price of asking. The tables are in `bot.policy`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

KeyScope = str  # what an API key may be made for, such as "imagine"
Action = str  # a row of `bot.policy.permissions`, or of `bot.policy.limits` alone
Role = Literal["member", "moderator", "admin", "owner", "operator"]
BucketKind = Literal["look", "change", "steer", "make", "stranger", "guess"]


@dataclass(frozen=True)
class Permission:
    """One row of the table. Each role is the least that may act; None: nobody.

    `own_role`: on an own job, or on no job. `joined_role`: on a job whose picture the member takes part in.
    `others_role`: on another member's public job in the same server. `private_role`: on another member's private job.
    `operator_elsewhere`: the operator may act on jobs of other servers; other members never may, except authors on
    their own jobs. `in_direct_messages`: it also works in a direct message with the bot. `phrase`: the action as it
    stands after "may". `concerns_jobs`: the action can have a job. `scope`: what an API key needs for it; None: no key
    may, whatever its member may. `scope_suffices`: a key that has it needs no role. `is_limitable`:
    admins may forbid it to members. Cancelling, deleting and reporting always work.
    """

    phrase: str
    own_role: Role | None = "member"
    others_role: Role | None = None
    private_role: Role | None = None
    joined_role: Role | None = None
    operator_elsewhere: bool = False
    in_direct_messages: bool = True
    concerns_jobs: bool = True
    scope: KeyScope | None = None
    scope_suffices: bool = False
    is_limitable: bool = False


class Price(NamedTuple):
    """The bucket that an action takes tokens from, and how many."""

    kind: BucketKind
    tokens: float
