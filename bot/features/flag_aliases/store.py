"""Members' flag aliases in SQL, which hold in every server. Works inside its caller's transaction."""

from __future__ import annotations

from sqlalchemy import Column, Connection, String, Table, Text, select

from bot.store.schema.tables import metadata


def load_flag_aliases(connection: Connection, member: str) -> dict[str, str]:
    """Return a member's flag aliases by name, in alphabetical order."""
    query = select(flag_aliases.c.name, flag_aliases.c.value).where(flag_aliases.c.member == member)
    return dict(sorted((row.name, row.value) for row in connection.execute(query)))


def put_flag_alias(connection: Connection, member: str, name: str, value: str, max_count: int) -> bool:
    """Store a flag alias, replacing one of the same name. False, and nothing stored: the member has `max_count`."""
    others = [other for other in load_flag_aliases(connection, member) if other != name]
    if len(others) >= max_count:
        return False
    delete_flag_alias(connection, member, name)
    connection.execute(flag_aliases.insert().values(member=member, name=name, value=value))
    return True


def delete_flag_alias(connection: Connection, member: str, name: str) -> bool:
    """Delete a flag alias; True if it existed."""
    conditions = (flag_aliases.c.member == member, flag_aliases.c.name == name)
    return connection.execute(flag_aliases.delete().where(*conditions)).rowcount > 0


def erase_member(connection: Connection, member: str, guild: str, until: float) -> None:
    """Delete the aliases of a member who is forgotten everywhere; leaving one `guild` deletes none."""
    if not guild:
        connection.execute(flag_aliases.delete().where(flag_aliases.c.member == member))


def export_member(connection: Connection, member: str) -> dict[str, object]:
    """Return what a member's export has of this."""
    return {"options": load_flag_aliases(connection, member)}


flag_aliases = Table(
    "options",
    metadata,
    Column("member", String(64), primary_key=True),
    Column("name", String(24), primary_key=True),
    Column("value", Text, nullable=False),
)
