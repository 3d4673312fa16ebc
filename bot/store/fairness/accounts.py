"""The accounts of the fair order in SQL: entry, charging and the search for the next job (explained in
`bot.policy.fair_queue`).

Every function works inside its caller's transaction.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

from sqlalchemy import (
    Connection,
    Integer,
    RowMapping,
    Select,
    Update,
    and_,
    bindparam,
    case,
    exists,
    func,
    or_,
    select,
    update,
)

from bot.domain.job_states import ACTIVE_STATES
from bot.policy.fair_queue import QueueBypass, account_name, ancestor_paths, entry_time, parent_path
from bot.policy.rules.effective_rules import RunningLimits
from bot.store.schema.tables import accounts, jobs

PAGE_SIZE = 32
FLOOR_WITHOUT_PARENT = 0.0
NO_LIMITS = RunningLimits()
# Each admission and each dispatch runs these. They are built once: building takes longer than SQLite takes to run them.
_IS_ON_PATH = accounts.c.path.in_(bindparam("levels", expanding=True))
_SELECT_ACCOUNTS = select(accounts).where(_IS_ON_PATH).with_for_update()
_INSERT_ACCOUNT = accounts.insert()
_REACTIVATE_ACCOUNT = (
    update(accounts)
    .where(accounts.c.path == bindparam("level"))
    .values(virtual=bindparam("virtual_time"), since=bindparam("waiting_since"))
)
_ADJUST_COUNTS = (
    update(accounts)
    .where(_IS_ON_PATH)
    .values(queued=accounts.c.queued + bindparam("queued_delta"), active=accounts.c.active + bindparam("active_delta"))
)
_ADD_COST = (
    update(accounts).where(_IS_ON_PATH).values(virtual=accounts.c.virtual + bindparam("cost") / accounts.c.weight)
)
_SUM_ROWS_IN_USE = select(func.coalesce(func.sum(jobs.c.rows), 0)).where(
    jobs.c.state.in_(ACTIVE_STATES), jobs.c.pool == bindparam("pool")
)
_SELECT_ACTIVE_GUILDS = select(jobs.c.guild).where(
    jobs.c.member == bindparam("member"), jobs.c.state.in_(ACTIVE_STATES)
)
AccountFilter = Literal["children", "members", "newcomers", "overdue"]  # which accounts a search visits


@dataclass(frozen=True)
class PickRequest:
    """What the dispatcher asks the store for: the next job of `pool`. `models`: those that live workers offer.

    `member_limit`: the most jobs that a member may run over all guilds, for jobs without a limit of their own.
    `running_limits`: limits on the running jobs of all members of a guild or channel.

    `newcomers_only`: consider only members with no active job.
    """

    pool: str
    models: Collection[str]
    member_limit: int
    newcomers_only: bool = False
    running_limits: RunningLimits = NO_LIMITS
    paused_rows: int = 0  # rows of active jobs that are free, since the jobs are paused
    loaded_models: Collection[str] | None = (
        None  # those of `models` that workers with room have in memory; None: irrelevant
    )
    bypass: QueueBypass = field(default_factory=QueueBypass)


def enter_accounts(connection: Connection, path: str, weight: float, now: float) -> None:
    """Create the accounts of a new job's member. An account with no queued job moves up to its parent's floor.

    The member's wait for a turn begins. `weight`: of the tier; other new accounts have the weight 1.
    """
    levels = ancestor_paths(path)
    accounts_by_path = {row.path: row for row in connection.execute(_SELECT_ACCOUNTS, {"levels": levels})}
    for level in levels:
        parent_account = accounts_by_path.get(parent_path(level))
        floor = parent_account.floor if parent_account is not None else FLOOR_WITHOUT_PARENT
        account = accounts_by_path.get(level)
        if account is None:
            values = {
                "path": level,
                "parent": parent_path(level),
                "virtual": floor,
                "floor": 0.0,
                "queued": 0,
                "active": 0,
                "weight": weight if level.count("/") == 1 else 1.0,
                "since": now if level == path else None,
            }
            connection.execute(_INSERT_ACCOUNT, values)
        elif account.queued == 0:
            params = {
                "level": level,
                "virtual_time": entry_time(account.virtual, floor),
                "waiting_since": now if level == path else None,
            }
            connection.execute(_REACTIVATE_ACCOUNT, params)


def adjust_counts(connection: Connection, path: str, *, queued: int = 0, active: int = 0) -> None:
    """Add to the job counts of every level."""
    if queued or active:
        params = {"levels": ancestor_paths(path), "queued_delta": queued, "active_delta": active}
        connection.execute(_ADJUST_COUNTS, params)


def add_cost(connection: Connection, path: str, cost: float) -> None:
    """Advance the virtual time of every level by `cost` ÷ weight. A negative cost refunds."""
    if cost:
        connection.execute(_ADD_COST, {"levels": ancestor_paths(path), "cost": cost})


def reset_wait(connection: Connection, path: str, now: float) -> None:
    """Restart a member's wait for a turn, since they have just had one."""
    connection.execute(update(accounts).where(accounts.c.path == path).values(since=now))


def mark_served(connection: Connection, path: str) -> None:
    """Raise the floor of every level above to the virtual time of `path`. Call it before the charge."""
    levels = ancestor_paths(path)
    connection.execute(_build_mark_served(), {"levels": levels, "above": levels[:-1]})


@cache
def _build_mark_served() -> Update:
    child = accounts.alias("below")
    is_on_path = child.c.path.in_(bindparam("levels", expanding=True))
    child_virtual = select(child.c.virtual).where(is_on_path, child.c.parent == accounts.c.path).scalar_subquery()
    floor = case((child_virtual > accounts.c.floor, child_virtual), else_=accounts.c.floor)
    return update(accounts).where(accounts.c.path.in_(bindparam("above", expanding=True))).values(floor=floor)


def count_rows_in_use(connection: Connection, pool: str) -> int:
    """Return the rows of the pool's sent and running jobs."""
    return int(connection.execute(_SUM_ROWS_IN_USE, {"pool": pool}).scalar_one())


def find_next_job(connection: Connection, request: PickRequest) -> RowMapping | None:
    """Return the next job's row in fair order that the request allows, or None. Reads no more accounts than needed."""
    for tier in _iter_children(connection, request.pool):
        for guild in _iter_children(connection, tier):
            full_channels = _find_full_channels(connection, account_name(guild), request.running_limits)
            if full_channels is None:
                continue
            for account in _iter_members(connection, guild, request):
                row = _find_first_job(connection, account, request, full_channels)
                if row is not None:
                    return row
    return None


def find_longest_waiting_job(connection: Connection, request: PickRequest, waiting_since: float) -> RowMapping | None:
    """Return the first allowed job of the member who has waited longest for a turn, at least since `waiting_since`."""
    full_by_guild: dict[str, list[str] | None] = {}
    path_prefix = f"{request.pool}/"
    path_params = {"before": waiting_since, "begins": path_prefix, "length": len(path_prefix)}
    for account in _iter_pages(connection, "overdue", path_params | _model_params(request)):
        guild = parent_path(account)
        if guild not in full_by_guild:
            full_by_guild[guild] = _find_full_channels(connection, account_name(guild), request.running_limits)
        full_channels = full_by_guild[guild]
        row = None if full_channels is None else _find_first_job(connection, account, request, full_channels)
        if row is not None:
            return row
    return None


def _find_full_channels(connection: Connection, guild: str, guild_limits: RunningLimits) -> list[str] | None:
    """Return the guild's channels that are at their limit; None if the whole guild is."""
    guild_limit = guild_limits.limit_of(guild)
    channels = guild_limits.channel_limits_of(guild)
    if guild_limit is None and not channels:
        return []
    running_query = select(jobs.c.channel).where(jobs.c.guild == guild, jobs.c.state.in_(ACTIVE_STATES))
    active_channels = connection.execute(running_query).scalars().all()
    if guild_limit is not None and len(active_channels) >= guild_limit:
        return None
    return [channel for channel, limit in channels.items() if active_channels.count(channel) >= limit]


def _iter_children(connection: Connection, path: str) -> Iterator[str]:
    return _iter_pages(connection, "children", {"above": path})


def _iter_members(connection: Connection, guild: str, request: PickRequest) -> Iterator[str]:
    """Yield only members with a job for an offered model: else each member with jobs for a model without a worker would
    cost a read.
    """
    return _iter_pages(
        connection, "newcomers" if request.newcomers_only else "members", {"above": guild} | _model_params(request)
    )


def _model_params(request: PickRequest) -> dict[str, object]:
    return {"models": [*request.models, ""]}


def _iter_pages(connection: Connection, account_filter: AccountFilter, params: Mapping[str, object]) -> Iterator[str]:
    """Yield paths by rank. Reads one account first, then pages of 32."""
    size = 1
    page: Sequence[Any] = connection.execute(
        _build_page_query(account_filter, is_next_page=False), {**params, "size": size}
    ).all()
    while page:
        for row in page:
            yield row.path
        if len(page) < size:
            return
        last = page[-1]
        size = PAGE_SIZE
        cursor = {"last": last.rank, "last_path": last.path}
        page = connection.execute(
            _build_page_query(account_filter, is_next_page=True), {**params, **cursor, "size": size}
        ).all()


@cache
def _build_page_query(account_filter: AccountFilter, *, is_next_page: bool) -> Select[*tuple[Any, ...]]:
    """Build the query of a page. `is_next_page`: only accounts after the last one of the previous page.

    A path begins with its pool, so the query does not filter jobs by pool: SQLite would scan all jobs of the pool.
    """
    rank = accounts.c.since if account_filter == "overdue" else accounts.c.virtual
    query = select(accounts.c.path, rank.label("rank")).where(accounts.c.queued > 0)
    if account_filter == "overdue":
        query = query.where(rank <= bindparam("before"))
        query = query.where(func.substr(accounts.c.path, 1, bindparam("length", type_=Integer)) == bindparam("begins"))
    else:
        query = query.where(accounts.c.parent == bindparam("above"))
    if account_filter != "children":
        waiting_job = (jobs.c.account == accounts.c.path, jobs.c.state == "queued")
        query = query.where(exists().where(*waiting_job, jobs.c.model.in_(bindparam("models", expanding=True))))
    if account_filter == "newcomers":
        query = query.where(accounts.c.active == 0)
    if is_next_page:
        same_rank = and_(rank == bindparam("last"), accounts.c.path > bindparam("last_path"))
        query = query.where(or_(rank > bindparam("last"), same_rank))
    return query.order_by(rank, accounts.c.path).limit(bindparam("size", type_=Integer))


def _find_first_job(
    connection: Connection, account: str, request: PickRequest, full_channels: Collection[str]
) -> RowMapping | None:
    params = {"account": account, "models": [*request.models, ""]} | (
        {"full": list(full_channels)} if full_channels else {}
    )
    row = connection.execute(_build_oldest_job_query(bool(full_channels)), params).mappings().first()
    return row if row is not None and _can_run(connection, row, request.member_limit) else None


@cache
def _build_oldest_job_query(with_full_channels: bool) -> Select[*tuple[Any, ...]]:
    query = select(jobs).where(jobs.c.account == bindparam("account"), jobs.c.state == "queued")
    query = query.where(jobs.c.model.in_(bindparam("models", expanding=True)))
    query = query.where(jobs.c.channel.not_in(bindparam("full", expanding=True))) if with_full_channels else query
    return query.order_by(jobs.c.id).limit(1)


def _can_run(connection: Connection, row: RowMapping, default_limit: int) -> bool:
    """Return True if the member may run one more job, here and in all guilds, by the limits at its admission."""
    guild_limit = row["running_here"]
    total_limit = row["running_everywhere"]
    if guild_limit is None and total_limit is None:
        total_limit = default_limit
    active_guilds = connection.execute(_SELECT_ACTIVE_GUILDS, {"member": row["member"]}).scalars().all()
    is_within_guild_limit = guild_limit is None or active_guilds.count(row["guild"]) < guild_limit
    return is_within_guild_limit and (total_limit is None or len(active_guilds) < total_limit)
