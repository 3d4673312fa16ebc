"""The ledger: usage for quota checks. Counts the running, waiting and charged jobs of a member, guild or channel.

Works inside one transaction. It reads only the figures that some limit needs, and each once, so the same question
again takes no reads, even after the transaction. Times are seconds since 1970, costs device-seconds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from functools import cache, partial
from types import MappingProxyType
from typing import Any, TypeVar, cast

from sqlalchemy import ColumnElement, Connection, Select, Subquery, bindparam, case, func, select, union_all

from bot.domain.dto import Member
from bot.domain.job_states import ACTIVE_STATES, OPEN_STATES
from bot.policy.limits import Charge, Spending, Usage, sum_spending
from bot.policy.rules.catalogue import UsageScope
from bot.store import rules
from bot.store.deletion.deletion_steps import RELAXED_PREFIX, RESULT_KINDS, create_hasher, load_hasher
from bot.store.jobs.records import RELAXED_TIER
from bot.store.members import preferences
from bot.store.schema.tables import archived_charges, jobs, pictures

T = TypeVar("T")
ARCHIVED_KINDS: Mapping[UsageScope, tuple[str, ...]] = MappingProxyType(
    {
        "member here": ("member", "guild"),
        "member everywhere": ("member",),
        "channel": ("guild", "channel"),
        "guild": ("guild",),
    }
)


def _scope_conditions(scope: UsageScope) -> list[ColumnElement[bool]]:
    """Filter a member's jobs by member only, and by guild later in Python: with both, SQLite scans the guild's jobs."""
    if scope.startswith("member"):
        return [jobs.c.member == bindparam("member")]
    is_in_guild = [jobs.c.guild == bindparam("guild")]
    return [*is_in_guild, jobs.c.channel == bindparam("channel")] if scope == "channel" else is_in_guild


@cache
def _build_count_query(scope: UsageScope) -> Select[*tuple[Any, ...]]:
    """Count open jobs by state and guild. Cached: each admission runs it, and building takes longer than running."""
    query = select(jobs.c.state, jobs.c.guild, func.count().label("jobs"))
    return query.where(*_scope_conditions(scope), jobs.c.state.in_(OPEN_STATES)).group_by(jobs.c.state, jobs.c.guild)


@cache
def _build_charge_query(scope: UsageScope) -> Select[*tuple[Any, ...]]:
    """Select the charges since a time. Cached like `_build_count_query`."""
    query = select(jobs.c.created.label("at"), jobs.c.charged, jobs.c.guild)
    return query.where(*_scope_conditions(scope), jobs.c.created > bindparam("since"), jobs.c.charged > 0)


@cache
def _build_relaxed_query() -> Select[*tuple[Any, ...]]:
    """Select what a member's relaxed jobs took since a time: an open job its estimate. Cached like the others."""
    seconds = case((jobs.c.state.in_(OPEN_STATES), jobs.c.cost), else_=jobs.c.billed)
    query = select(jobs.c.created.label("at"), seconds.label("seconds"), jobs.c.guild)
    return query.where(
        jobs.c.member == bindparam("member"), jobs.c.created > bindparam("since"), jobs.c.tier == RELAXED_TIER
    )


class Ledger:
    """Usage as one transaction sees it for one member."""

    def __init__(self, connection: Connection, member: Member, now: float) -> None:
        self._connection = connection
        self._member = member
        self._now = now
        self.load_rules = cache(partial(rules.list_effective_rules, connection, member.guild))
        self.load_preferences = cache(partial(preferences.load_preferences, connection, member.id))
        self.is_input_deleted = cache(self._find_deleted_input)
        self.get_usage = cache(self._count_usage)
        self.get_spending = cache(self._sum_charges)
        self.get_relaxed_spending = cache(self._sum_relaxed)

    def _find_deleted_input(self, parent: str | None, contents: tuple[str, ...]) -> bool:
        """Return whether a job's input was deleted: its parent is, or only deleted jobs made the contents."""
        query = select(jobs.c.deleted).where(jobs.c.id == parent)
        if self._connection.execute(query).scalar_one_or_none() is not None:
            return True
        results_query = select(pictures.c.sha256, jobs.c.deleted).join(jobs, jobs.c.id == pictures.c.job)
        results_query = results_query.where(pictures.c.sha256.in_(contents), pictures.c.kind.in_(RESULT_KINDS))
        is_kept_by_hash: dict[str, bool] = {}
        for row in self._connection.execute(results_query):
            is_kept_by_hash[row.sha256] = is_kept_by_hash.get(row.sha256, False) or row.deleted is None
        return not all(is_kept_by_hash.values())

    def _params(self, **others: object) -> dict[str, object]:
        return {"member": self._member.id, "guild": self._member.guild, "channel": self._member.channel, **others}

    def _is_counted(self, scope: UsageScope, guild: str) -> bool:
        return scope != "member here" or guild == self._member.guild

    def _count_usage(self, scope: UsageScope) -> Usage:
        by_state: Counter[str] = Counter()
        for row in self._connection.execute(_build_count_query(scope), self._params()):
            by_state[row.state] += int(row.jobs) * self._is_counted(scope, row.guild)
        return Usage(running=sum(by_state[state] for state in ACTIVE_STATES), queued=by_state["queued"])

    def _sum_charges(self, scope: UsageScope, window: float) -> Spending:
        """Sum the charges of the last `window` seconds. A charge counts from the creation of its job."""
        archive_query = self._build_archive_query(scope, window)
        params = self._params(since=self._now - window)
        if scope.startswith("member"):
            rows = self._connection.execute(_build_charge_query(scope), params)
            charges = [Charge(row.at, row.charged) for row in rows if self._is_counted(scope, row.guild)]
            return sum_spending([*charges, *self._read_archive(archive_query)], self._now, window)
        recent_query = (
            _build_charge_query(scope).params(params).with_only_columns(jobs.c.created.label("at"), jobs.c.charged)
        )
        charges = (recent_query if archive_query is None else union_all(recent_query, archive_query)).subquery()
        total_query = select(func.coalesce(func.sum(charges.c.charged), 0.0))
        used_seconds = float(self._connection.execute(total_query).scalar_one())

        @cache
        def frees_at(excess: float) -> float:
            return self._find_release_time(charges, excess) + window

        return Spending(used_seconds, window, frees_at)

    def _sum_relaxed(self, scope: UsageScope, window: float) -> Spending:
        """Sum what a member's relaxed jobs of the last `window` seconds took; they are charged nothing."""
        rows = self._connection.execute(_build_relaxed_query(), self._params(since=self._now - window))
        charges = [Charge(row.at, row.seconds) for row in rows if self._is_counted(scope, row.guild)]
        charges += self._read_archive(self._build_archive_query(scope, window, RELAXED_PREFIX))
        return sum_spending([charge for charge in charges if charge.cost > 0], self._now, window)

    def _read_archive(self, query: Select[*tuple[Any, ...]] | None) -> list[Charge]:
        return [] if query is None else [Charge(row.at, row.charged) for row in self._connection.execute(query)]

    def _build_archive_query(
        self, scope: UsageScope, window: float, prefix: str = ""
    ) -> Select[*tuple[Any, ...]] | None:
        """Select the archived charges of removed jobs; None where there are none. `prefix`: of the kinds of ids."""
        hash_id = load_hasher(self._connection)
        if hash_id is None:
            return None
        ids = {"member": self._member.id, "guild": self._member.guild, "channel": self._member.channel}
        is_theirs = (archived_charges.c[kind] == hash_id(prefix + kind, ids[kind]) for kind in ARCHIVED_KINDS[scope])
        query = select(archived_charges.c.at, archived_charges.c.charged)
        return query.where(archived_charges.c.at > self._now - window, *is_theirs)

    def _find_release_time(self, charges: Subquery, excess: float) -> float:
        """Return the time of the charge whose expiry, with all older ones, frees `excess`."""
        # charges of the same moment count together
        running_total: Any = func.sum(charges.c.charged).over(order_by=charges.c.at)
        totals = select(charges.c.at, running_total.label("gone")).subquery()
        query = select(func.min(totals.c.at)).where(totals.c.gone >= excess)
        released_at = self._connection.execute(query).scalar_one_or_none()
        return self._now if released_at is None else float(released_at)


def run_with_ledger(connection: Connection, member: Member, now: float, operation: Callable[[Ledger], T]) -> T:
    """Run `operation` on a ledger: `await store.query(run_with_ledger, member, now, operation)`."""
    return operation(Ledger(connection, member, now))


def reserve_charge(
    connection: Connection, member: Member, now: float, seconds: float, check: Callable[[Ledger], None]
) -> int:
    """Charge a member device-seconds if `check` does not raise. Return the charge's number."""
    check(Ledger(connection, member, now))
    hash_id = load_hasher(connection) or create_hasher(connection)
    values = {
        "member": hash_id("member", member.id),
        "guild": hash_id("guild", member.guild),
        "channel": hash_id("channel", member.channel),
        "at": now,
        "charged": seconds,
    }
    statement = archived_charges.insert().values(values).returning(archived_charges.c.id)
    return cast(int, connection.execute(statement).scalar_one())


def settle_charge(connection: Connection, charge: int, seconds: float) -> None:
    """Set a charge to the device-seconds that the work took."""
    connection.execute(archived_charges.update().where(archived_charges.c.id == charge).values(charged=seconds))
