"""The doctor's line about the database: its kind, whether it answers, and never its password."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

from bot.app.settings import load_settings
from bot.cli.doctor import check_database
from shared.postgres_server import PASSWORD, Server


def test_a_missing_sqlite_file_is_fine_and_is_not_created(tmp_path: Path) -> None:
    findings = check_database(load_settings(data=tmp_path))
    assert (findings.ok, findings.summary) == (True, f"SQLite, {tmp_path}/darkroom.sqlite is made at the first start")
    assert list(tmp_path.iterdir()) == []


def test_a_sqlite_file_is_named_with_its_version_and_a_broken_one_is_reported(
    new_database_url: Callable[..., str], tmp_path: Path
) -> None:
    url = new_database_url("sqlite")
    findings = check_database(load_settings(data=tmp_path, database_url=url))
    assert findings.ok
    assert findings.summary.startswith(
        f"SQLite {sqlite3.sqlite_version} in {url.removeprefix('sqlite:///')}, answers in "
    )
    assert findings.summary.endswith("; its tables are up to date")
    broken_file = tmp_path / "broken.sqlite"
    broken_file.write_bytes(b"no database" * 100)
    findings = check_database(load_settings(data=tmp_path, database_url=f"sqlite:///{broken_file}"))
    assert not findings.ok
    assert "DATABASE_URL" in findings.remedy


def test_a_postgresql_server_is_named_and_its_password_is_never_shown(
    postgres: Server, new_database_url: Callable[..., str], tmp_path: Path
) -> None:
    findings = check_database(
        load_settings(data=tmp_path, database_url=new_database_url("postgres", without_tables=True))
    )
    assert findings.summary.startswith("PostgreSQL ")
    assert "its tables are made at the first start" in findings.summary
    assert (findings.ok, "fsync" in findings.remedy) == (False, True), "the test server runs without fsync"
    for url in (f"postgresql://darkroom:{PASSWORD}@127.0.0.1:1/x", postgres.url("none", port=True)):
        findings = check_database(load_settings(data=tmp_path, database_url=url))
        assert not findings.ok
        assert "cannot be used now" in findings.summary
        assert PASSWORD not in str(findings)


def test_tables_of_a_later_version_are_reported(new_database_url: Callable[..., str], tmp_path: Path) -> None:
    url = new_database_url("sqlite")
    with sqlite3.connect(url.removeprefix("sqlite:///")) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    findings = check_database(load_settings(data=tmp_path, database_url=url))
    assert not findings.ok
    assert "another version" in findings.summary
