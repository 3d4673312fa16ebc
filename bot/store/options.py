"""Members' own options: a name, and what it stands for. Each works inside its caller's transaction."""

from __future__ import annotations

from sqlalchemy import Connection, select

from bot.store.choices import options


def of(connection: Connection, member: str) -> dict[str, str]:
    """What each of a member's options stands for, by name in alphabetical order."""
    asked = select(options.c.name, options.c.value).where(options.c.member == member)
    return dict(sorted((row.name, row.value) for row in connection.execute(asked)))


def put(connection: Connection, member: str, name: str, value: str, most: int) -> bool:
    """Note one, in place of an older one of its name. False, and nothing is noted, where that would be more than
    `most`.
    """
    others = [one for one in of(connection, member) if one != name]
    if len(others) >= most:
        return False
    drop(connection, member, name)
    connection.execute(options.insert().values(member=member, name=name, value=value))
    return True


def drop(connection: Connection, member: str, name: str) -> bool:
    """Delete one; whether it was there."""
    same = (options.c.member == member, options.c.name == name)
    return connection.execute(options.delete().where(*same)).rowcount > 0
