"""The doctor's line about the database: which it is, whether it answers, and never its password."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

from bot.app.settings import load_settings
from bot.cli.doctor import check_database
from shared.postgres_server import PASSWORD, Server


def test_a_missing_sqlite_file_is_fine_and_is_not_created(tmp_path: Path) -> None:
    found = check_database(load_settings(data=tmp_path))
    assert (found.ok, found.says) == (True, f"SQLite, {tmp_path}/darkroom.sqlite is made at the first start")
    assert list(tmp_path.iterdir()) == []


def test_a_sqlite_file_is_named_with_its_version_and_a_broken_one_is_reported(
    fresh: Callable[..., str], tmp_path: Path
) -> None:
    url = fresh("sqlite")
    found = check_database(load_settings(data=tmp_path, database_url=url))
    assert found.ok
    assert found.says.startswith(f"SQLite {sqlite3.sqlite_version} in {url.removeprefix('sqlite:///')}, answers in ")
    assert found.says.endswith("; its tables are up to date")
    broken = tmp_path / "broken.sqlite"
    broken.write_bytes(b"no database" * 100)
    found = check_database(load_settings(data=tmp_path, database_url=f"sqlite:///{broken}"))
    assert not found.ok
    assert "DATABASE_URL" in found.mend


def test_a_postgresql_server_is_named_and_its_password_is_never_shown(
    postgres: Server, fresh: Callable[..., str], tmp_path: Path
) -> None:
    found = check_database(load_settings(data=tmp_path, database_url=fresh("postgres", bare=True)))
    assert found.says.startswith("PostgreSQL ")
    assert "its tables are made at the first start" in found.says
    assert (found.ok, "fsync" in found.mend) == (False, True), "the test server runs without fsync"
    for url in (f"postgresql://darkroom:{PASSWORD}@127.0.0.1:1/x", postgres.url("none", port=True)):
        found = check_database(load_settings(data=tmp_path, database_url=url))
        assert not found.ok
        assert "cannot be used now" in found.says
        assert PASSWORD not in str(found)


def test_tables_of_a_later_version_are_reported(fresh: Callable[..., str], tmp_path: Path) -> None:
    url = fresh("sqlite")
    with sqlite3.connect(url.removeprefix("sqlite:///")) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    found = check_database(load_settings(data=tmp_path, database_url=url))
    assert not found.ok
    assert "later version" in found.says
