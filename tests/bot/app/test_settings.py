"""Settings: defaults, the environment, and one-line errors without secrets."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from bot.app.settings import Settings, load_settings
from bot.domain.errors import UserError
from bot.policy.limits import Limits


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for field in Settings.model_fields.values():
        monkeypatch.delenv(str(field.validation_alias), raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)


def test_defaults_need_no_environment(tmp_path):
    settings = load_settings()
    assert settings.data == tmp_path / ".local/share/darkroom"
    assert settings.database == f"sqlite:///{settings.data}/darkroom.sqlite"
    assert settings.pictures == str(settings.data / "pictures")
    assert (settings.host, settings.port, settings.nats, settings.discord_token) == ("127.0.0.1", 8189, "", None)
    assert settings.limits == Limits()


def test_the_command_line_overrides_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("DARKROOM_DATA", str(tmp_path / "a"))
    monkeypatch.setenv("DARKROOM_PORT", "8000")
    monkeypatch.setenv("ALLOWED_HOSTS", "one.example, two.example,")
    monkeypatch.setenv("DISCORD_TOKEN", "")
    monkeypatch.setenv("DARKROOM_LOG_FORMAT", "json")
    monkeypatch.setenv("DARKROOM_PICTURE_CHECK", "/classifier")
    monkeypatch.setenv("DARKROOM_MAX_JOB_AGE", "240")
    settings = load_settings(port=0)
    assert settings.data == tmp_path / "a"
    assert settings.port == 0
    assert settings.allowed_hosts == ("one.example", "two.example")
    assert settings.discord_token is None
    assert (settings.log, settings.check, settings.max_age) == ("json", Path("/classifier"), 240.0)


def test_the_data_folder_follows_xdg(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "xdg"))
    assert load_settings().data == tmp_path / "xdg" / "darkroom"
    assert load_settings(data=Path("~/here")).data == tmp_path / "here"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DARKROOM_PORT", "70000"),
        ("DARKROOM_PORT", "many"),
        ("PUBLIC_URL", "darkroom.example"),
        ("DARKROOM_NATS", "http://broker"),
        ("DISCORD_GATEWAY", "http://gateway"),
        ("DATABASE_URL", "mysql://root:hunter2@db/x"),
        ("DARKROOM_RUNNING", "0"),
        ("DARKROOM_COST_DAY", "nan"),
        ("DARKROOM_LOG_FORMAT", "xml"),
        ("DARKROOM_MAX_JOB_AGE", "1"),
    ],
)
def test_a_bad_value_gives_one_line_that_names_it_and_shows_no_secret(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError) as error:
        load_settings()
    assert error.value.sentence.startswith(f"{name} is not valid: ")
    assert "\n" not in error.value.sentence
    assert "hunter2" not in error.value.sentence
    assert error.value.__cause__ is None


def test_a_bad_value_on_the_command_line_is_named_too():
    with pytest.raises(UserError, match=r"^DARKROOM_PORT is not valid: "):
        load_settings(port=-1)


def test_settings_are_frozen_and_hide_secrets_in_their_repr(monkeypatch):
    monkeypatch.setenv("DISCORD_TOKEN", "hunter2")
    monkeypatch.setenv("DATABASE_URL", "sqlite:///x?password=hunter2")
    settings = load_settings()
    assert "hunter2" not in repr(settings)
    assert settings.database.endswith("hunter2")
    with pytest.raises(ValidationError):
        settings.port = 1
