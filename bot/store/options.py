"""Members' flag aliases in SQL: a name and the text it expands to. Works inside its caller's transaction."""

from __future__ import annotations

from sqlalchemy import Connection, select

from bot.store.choices import options


def of(connection: Connection, member: str) -> dict[str, str]:
    """Return a member's flag aliases by name, in alphabetical order."""
    asked = select(options.c.name, options.c.value).where(options.c.member == member)
    return dict(sorted((row.name, row.value) for row in connection.execute(asked)))


def put(connection: Connection, member: str, name: str, value: str, most: int) -> bool:
    """Store a flag alias, replacing one of the same name. False: the member has `most` already, and nothing changed."""
    others = [one for one in of(connection, member) if one != name]
    if len(others) >= most:
        return False
    drop(connection, member, name)
    connection.execute(options.insert().values(member=member, name=name, value=value))
    return True


def drop(connection: Connection, member: str, name: str) -> bool:
    """Delete a flag alias; True if it existed."""
    same = (options.c.member == member, options.c.name == name)
    return connection.execute(options.delete().where(*same)).rowcount > 0
