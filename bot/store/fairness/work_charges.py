"""Charges for work that is no job. They are beside those of deleted jobs (`bot.store.deletion.archived_charges`), where
every limit counts them. Each function works inside its caller's transaction.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from sqlalchemy import Connection

from bot.domain.dto import Member
from bot.store.deletion.archived_charges import create_hasher, load_hasher
from bot.store.fairness.ledger import Ledger
from bot.store.schema.deletion_tables import archived_charges


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
