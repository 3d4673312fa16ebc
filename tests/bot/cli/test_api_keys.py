"""`darkroom api-key`: what it refuses, in one sentence, before anything is written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bot.__main__ import app
from bot.domain.errors import UserError
from shared.migrated_database import put_migrated_database


def run_api_key(folder: Path, *args: str) -> None:
    app(["api-key", *args, "--data", str(folder)], standalone_mode=False)


def test_a_mistake_is_one_sentence_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put_migrated_database(tmp_path)
    for args, sentence in (
        ((), "Name one key"),
        (("kiosk", "--list"), "Name one key"),
        (("kiosk", "--scopes", "draw", "--budget", "1h/day"), "There is no scope 'draw'"),
        (("kiosk", "--scopes", ","), "A key needs a scope"),
        (("kiosk", "--budget", "2h/week"), "is no budget"),
        (("kiosk", "--budget", "2x/day"), "cost_day cannot be"),
        (("kiosk", "--expires", "soon"), "--expires cannot be"),
        (("kiosk", "--expires", "0d"), "--expires cannot be"),
        (("kiosk", "--expires", "999999999d"), "up to 10 years"),
        (("Kiosk",), "A key's name has"),
        (("kiosk", "--revoke"), "There is no valid key 'kiosk'"),
    ):
        with pytest.raises(UserError, match=sentence):
            run_api_key(tmp_path, *args)
    run_api_key(tmp_path, "--list", "--json")
    assert json.loads(capsys.readouterr().out) == []
    app(["rules", "show", "--guild", "local", "--data", str(tmp_path)], standalone_mode=False)
    assert "No rules are set" in capsys.readouterr().out


def test_a_folder_without_a_store_gets_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There is no store"):
        run_api_key(tmp_path, "kiosk")
    assert list(tmp_path.iterdir()) == []


def test_a_new_key_is_shown_with_its_budget_and_its_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put_migrated_database(tmp_path)
    run_api_key(tmp_path, "kiosk", "--budget", "10h/month", "--expires", "90d")
    text = capsys.readouterr().out
    assert "The key kiosk, for imagine, read until 20" in text
    assert "Its device time: 30 min a day, 10 h a month." in text
    app(["rules", "show", "--guild", "local", "--data", str(tmp_path)], standalone_mode=False)
    assert "local:key:kiosk         cost_month           10 h" in capsys.readouterr().out
