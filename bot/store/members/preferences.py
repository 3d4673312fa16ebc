"""Members' preferences and favourites in SQL. Each function works inside its caller's transaction."""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import Connection, bindparam, select

from bot.domain.feature import load_hooks, merge_rows
from bot.store.schema.tables import favourites
from bot.store.schema.tables import preferences as chosen

MAX_FAVOURITES = 500  # most favourites in a list
_SELECT_PREFERENCES = select(chosen.c["values"]).where(chosen.c.member == bindparam("member"))


def load_preferences(connection: Connection, member: str) -> dict[str, object]:
    """Return the preferences as stored; empty if there are none."""
    stored_values = connection.execute(_SELECT_PREFERENCES, {"member": member}).scalar_one_or_none()
    return dict(stored_values or {})


def update_preferences(connection: Connection, member: str, changes: Mapping[str, object]) -> dict[str, object]:
    """Change some of a member's preferences, and return all of them."""
    values = {**load_preferences(connection, member), **changes}
    connection.execute(chosen.delete().where(chosen.c.member == member))
    connection.execute(chosen.insert().values({"member": member, "values": values}))
    return values


def toggle_favourite(connection: Connection, member: str, job: str, image: int, now: float) -> bool:
    """Toggle a favourite; True if it is one now."""
    conditions = (favourites.c.member == member, favourites.c.job == job, favourites.c.image == image)
    if connection.execute(favourites.delete().where(*conditions)).rowcount:
        return False
    connection.execute(favourites.insert().values(member=member, job=job, image=image, at=now))
    return True


def list_favourites(connection: Connection, member: str) -> list[tuple[str, int]]:
    """Return a member's favourites as (job, image), the newest first."""
    query = select(favourites.c.job, favourites.c.image).where(favourites.c.member == member)
    rows = connection.execute(query.order_by(favourites.c.at.desc()).limit(MAX_FAVOURITES))
    return [(row.job, row.image) for row in rows]


def load_flag_aliases(connection: Connection, member: str) -> dict[str, str]:
    """Return the flags of a member's own that features keep, and what each stands for."""
    return merge_rows({}, *(load(connection, member) for load in load_hooks("load_flag_aliases")))
