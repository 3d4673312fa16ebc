"""Settings: defaults, the environment, and one-line errors without secrets."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from bot.app.settings import list_tables, load_settings
from bot.domain.errors import UserError
from bot.policy.limits import Limits
from engine.process.setting_sources import list_settings, name_variable
from engine.process.settings import SharedSettings
from engine.process.settings import load_settings as load_worker_settings


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith(("DARKROOM_", "DISCORD_", "DATABASE_URL"))]:
        monkeypatch.delenv(name)
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
    monkeypatch.setenv("DARKROOM_ALLOWED_HOSTS", "one.example, two.example,")
    monkeypatch.setenv("DISCORD_TOKEN", "")
    monkeypatch.setenv("DARKROOM_LOG_FORMAT", "json")
    monkeypatch.setenv("DARKROOM_PICTURE_CHECK", "/classifier")
    monkeypatch.setenv("DARKROOM_MAX_JOB_AGE", "240")
    settings = load_settings(port=0)
    assert settings.data == tmp_path / "a"
    assert settings.port == 0
    assert settings.allowed_hosts == ("one.example", "two.example")
    assert settings.discord_token is None
    assert (settings.log_format, settings.picture_check, settings.max_job_age) == ("json", Path("/classifier"), 240.0)


def test_the_data_folder_follows_xdg(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "xdg"))
    assert load_settings().data == tmp_path / "xdg" / "darkroom"
    assert load_settings(data=Path("~/here")).data == tmp_path / "here"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DARKROOM_PORT", "70000"),
        ("DARKROOM_PORT", "many"),
        ("DARKROOM_PUBLIC_URL", "darkroom.example"),
        ("DARKROOM_NATS", "http://broker"),
        ("DARKROOM_DISCORD_GATEWAY", "http://gateway"),
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
    with pytest.raises(UserError, match=r"^--port is not valid: "):
        load_settings(port=-1)


def test_settings_are_frozen_and_hide_secrets_in_their_repr(monkeypatch):
    monkeypatch.setenv("DISCORD_TOKEN", "hunter2")
    monkeypatch.setenv("DATABASE_URL", "sqlite:///x?password=hunter2")
    settings = load_settings()
    assert "hunter2" not in repr(settings)
    assert settings.database.endswith("hunter2")
    with pytest.raises(ValidationError):
        settings.port = 1


def write_file(folder: Path, text: str, mode: int = 0o600) -> Path:
    path = folder / "darkroom.toml"
    path.write_text(text)
    path.chmod(mode)
    return path


def test_the_file_of_the_data_folder_is_read_and_variables_override_it(monkeypatch, tmp_path):
    write_file(tmp_path, 'port = 8000\nkeep_days = 90\nallowed_hosts = ["one.example"]\ndiscord_token = "secret"\n')
    monkeypatch.setenv("DARKROOM_PORT", "8001")
    settings = load_settings(data=tmp_path)
    assert (settings.port, settings.keep_days, settings.allowed_hosts) == (8001, 90.0, ("one.example",))
    assert settings.discord_token is not None
    assert load_settings(data=tmp_path, port=0).port == 0
    assert load_settings(data=tmp_path / "elsewhere").port == 8001


def test_a_file_elsewhere_is_named_by_a_variable_and_may_name_the_data_folder(monkeypatch, tmp_path):
    path = write_file(tmp_path, f'data = "{tmp_path}/pictures"\n')
    with pytest.raises(UserError, match="cannot name another one"):
        load_settings(data=tmp_path)
    monkeypatch.setenv("DARKROOM_CONFIG", str(path))
    assert load_settings().data == tmp_path / "pictures"
    monkeypatch.setenv("DARKROOM_CONFIG", str(tmp_path / "nowhere.toml"))
    with pytest.raises(UserError, match=r"^DARKROOM_CONFIG names .*nowhere\.toml: there is no such file\.$"):
        load_settings()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("keep_day = 3", "{path}: there is no setting “keep_day”; the nearest is keep_days."),
        ("DARKROOM_PORT = 1", "{path}: there is no setting “DARKROOM_PORT”; the nearest is port."),
        ("port = 70000", "port in {path} is not valid: input should be less than or equal to 65535."),
        ("memory = 'much'\nport = 'x", "{path} cannot be read: "),
        ("[no-such-feature]\nx = 1", "{path}: there is no setting “no-such-feature”"),
    ],
)
def test_a_mistake_in_the_file_is_one_sentence(tmp_path, text, sentence):
    path = write_file(tmp_path, text)
    with pytest.raises(UserError) as error:
        load_settings(data=tmp_path)
    assert error.value.sentence.startswith(sentence.format(path=path))
    assert "\n" not in error.value.sentence


def test_a_secret_in_a_file_that_everybody_can_read_is_refused(tmp_path):
    write_file(tmp_path, 'port = 8000\nmetrics_token = "hunter2hunter2hunter2"\n', mode=0o644)
    with pytest.raises(UserError, match=r"holds metrics_token, and everybody can read it: chmod 600 ") as error:
        load_settings(data=tmp_path)
    assert "hunter2" not in error.value.sentence
    write_file(tmp_path, "port = 8000\n", mode=0o644)
    assert load_settings(data=tmp_path).port == 8000


def test_a_misspelt_variable_is_named_with_the_nearest_setting(monkeypatch):
    monkeypatch.setenv("DARKROOM_URL", "http://127.0.0.1:8189")  # of the examples
    load_settings()
    monkeypatch.setenv("DARKROOM_KEEP_DAY", "3")
    with pytest.raises(UserError, match=r"^There is no setting DARKROOM_KEEP_DAY; the nearest is .*_KEEP_DAYS\.$"):
        load_settings()


def test_a_worker_reads_its_own_settings_of_the_bots_file(monkeypatch, tmp_path):
    """One file may serve both; what a feature has in it is the bot's business."""
    write_file(tmp_path, 'port = 8000\nmemory = "12GB"\nnats_key = "SU"\n[some_feature]\nx = 1\n')
    monkeypatch.setenv("DARKROOM_SOME_FEATURE_X", "1")
    settings = load_worker_settings(data=tmp_path)
    assert (settings.memory, settings.nats_key.get_secret_value()) == (12 * 10**9, "SU")
    monkeypatch.setenv("DARKROOM_NATS_TOKEN", "token")
    assert not load_worker_settings(data=tmp_path).nats_key, "the broker of `darkroom up` gave a token"


def test_every_setting_has_one_name(monkeypatch):
    """No worker takes a feature's variable for a misspelt one of its own."""
    names = [name_variable(name, table) for table, kind in list_tables() for name in list_settings(kind)]
    assert len(set(names)) == len(names) - len(list_settings(SharedSettings))
    for table, kind in list_tables():
        for name in list_settings(kind) if table else ():
            monkeypatch.setenv(name_variable(name, table), "x")
    load_worker_settings()
