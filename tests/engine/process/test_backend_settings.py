"""Which backend the command line names; a key never comes from there."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.process.setting_sources import SettingError
from engine.process.settings import load_settings


def test_a_backend_has_a_kind_an_address_and_the_key_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DARKROOM_BACKEND_KEY", "sk-secret")
    backend = load_settings(backend="openai=https://images.example/").backend
    assert backend is not None
    assert (backend.kind, backend.url, backend.key.get_secret_value()) == (
        "openai",
        "https://images.example",
        "sk-secret",
    )
    assert "sk-secret" not in repr(backend)
    assert load_settings().backend is None
    monkeypatch.setenv("DARKROOM_BACKEND", "comfyui=http://127.0.0.1:8188")
    assert load_settings().backend is not None


@pytest.mark.sampled
@pytest.mark.parametrize(
    ("text", "workflows", "sentence"),
    [
        ("invokeai=http://127.0.0.1", (), "comfyui=http://127.0.0.1:8188, a1111="),
        ("comfyui", (), "is needed"),
        ("openai=https://me:sk-secret@images.example", (), "the key belongs into DARKROOM_BACKEND_KEY"),
        ("openai=https://images.example?key=sk-secret", (), "the key belongs into DARKROOM_BACKEND_KEY"),
        ("a1111=ftp://127.0.0.1", (), "an address without a key is needed"),
        ("a1111=http://127.0.0.1", (Path("x.json"),), "--workflow is for --backend comfyui"),
        ("", (Path("x.json"),), "need --backend"),
    ],
)
def test_a_wrong_backend_is_refused_with_a_sentence_that_holds_no_key(
    text: str, workflows: tuple[Path, ...], sentence: str
) -> None:
    with pytest.raises(SettingError, match=sentence) as raised:
        load_settings(backend=text, workflows=workflows)
    assert "sk-secret" not in str(raised.value)
