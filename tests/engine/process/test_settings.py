"""`python -m engine serve`: a bad setting ends it with one line and exit code 2, before it loads anything heavy."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.process.setting_sources import SettingError
from engine.process.settings import load_settings, read_token
from shared.worker_process import run_worker_command


@pytest.mark.sampled
@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((), "Name the broker with --nats or DARKROOM_NATS."),
        (("--nats", "nonsense"), "--nats is not valid: an address such as nats://127.0.0.1:4222 is needed."),
        (("--nats", "nats://127.0.0.1:1", "--device", "abacus"), "--device is not valid: auto, cpu, cuda or cuda:1"),
        (("--nats", "nats://127.0.0.1:1", "--name", "a b"), "--name is not valid: "),
        (("--nats", "nats://127.0.0.1:1", "--token-file", "nowhere"), "The file nowhere cannot be read"),
    ],
)
def test_a_bad_setting_is_named_in_one_line(args: tuple[str, ...], message: str) -> None:
    completed = run_worker_command("serve", *args)
    assert completed.returncode == 2
    assert completed.stderr.startswith(message)
    assert completed.stderr.count("\n") == 1


def test_an_unknown_option_gives_an_error_without_a_traceback() -> None:
    completed = run_worker_command("serve", "--bogus")
    assert completed.returncode == 2
    assert "--bogus" in completed.stderr
    assert "Traceback" not in completed.stderr


def test_the_command_line_overrides_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DARKROOM_NATS", "nats://elsewhere:4222")
    monkeypatch.setenv("DARKROOM_NATS_TOKEN", "secret-token")
    monkeypatch.setenv("DARKROOM_WORKER_NAME", "from-environment")
    settings = load_settings(worker_name="given", nats="", models=(), data=tmp_path)
    assert (settings.nats, settings.worker_name) == ("nats://elsewhere:4222", "given")
    assert (settings.models, settings.pools, settings.data) == (("added",), ("default",), tmp_path)
    assert settings.nats_token.get_secret_value() == "secret-token"
    assert "secret-token" not in repr(settings)


def test_every_kind_of_variable_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DARKROOM_NATS", "nats://127.0.0.1:4222")
    values = {
        "DARKROOM_WORKER_NAME": "shed",
        "DARKROOM_CUDA_GRAPHS": "1",
        "DARKROOM_LOG_FORMAT": "json",
        "DARKROOM_PICTURE_CHECK": "/classifier",
        "DARKROOM_PICTURE_CHECK_LABELS": "gore",
        "DARKROOM_PICTURE_CHECK_THRESHOLD": "0.25",
    }
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    settings = load_settings()
    assert (settings.worker_name, settings.cuda_graphs, settings.log_format) == ("shed", True, "json")
    assert settings.check is not None
    assert (settings.check.folder, settings.check.labels, settings.check.threshold) == (
        Path("/classifier"),
        ("gore",),
        0.25,
    )
    monkeypatch.setenv("DARKROOM_CUDA_GRAPHS", "")
    assert not load_settings().cuda_graphs, "an empty variable is as none"


def test_a_worker_without_a_name_takes_a_valid_one_from_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "-ä weird host!.local")
    monkeypatch.delenv("DARKROOM_WORKER_NAME", raising=False)
    assert load_settings(nats="nats://127.0.0.1:4222").worker_name == "weird-host-.local"


def test_a_token_can_come_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("abc\n")
    assert read_token(tmp_path / "token") == "abc"
    with pytest.raises(SettingError, match="FileNotFoundError"):
        read_token(tmp_path / "none")
