"""`--offload`: its words, in the option and in the variable."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.process.memory_requests import OffloadRequest, parse_offload
from engine.process.setting_sources import SettingError
from engine.process.settings import load_settings


@pytest.mark.parametrize(
    ("value", "expected"), [("auto", "auto"), ("LAYERS ", "layers"), ("none", "none"), ("text", "text")]
)
def test_a_word_is_read(value: str, expected: OffloadRequest) -> None:
    assert parse_offload(value) == expected


def test_another_word_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(ValueError, match="auto, none, text or layers"):
        parse_offload("everything")


def test_option_and_variable_reach_the_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DARKROOM_NATS", "nats://127.0.0.1:4222")
    monkeypatch.delenv("DARKROOM_OFFLOAD", raising=False)
    assert load_settings(data=tmp_path).offload == "auto"
    monkeypatch.setenv("DARKROOM_OFFLOAD", "text")
    assert load_settings(data=tmp_path, offload="").offload == "text"
    assert load_settings(data=tmp_path, offload="layers").offload == "layers"
    with pytest.raises(SettingError, match="--offload is not valid: auto, none, text or layers is needed"):
        load_settings(data=tmp_path, offload="sometimes")
