"""Which backend the command line names; a key never comes from there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from engine.process.backend_kinds import list_forms, load_backend_kinds
from engine.process.setting_sources import SettingError
from engine.process.settings import load_settings

KIND = next(name for name, kind in load_backend_kinds().items() if not kind.takes_workflows)


def test_a_backend_has_a_kind_an_address_and_the_key_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DARKROOM_BACKEND_KEY", "sk-secret")
    backend = load_settings(backend=f"{KIND}=https://images.example/").backend
    assert backend is not None
    assert (backend.kind, backend.url, backend.key.get_secret_value()) == (KIND, "https://images.example", "sk-secret")
    assert "sk-secret" not in repr(backend)
    assert load_settings().backend is None
    monkeypatch.setenv("DARKROOM_BACKEND", f"{KIND}=http://127.0.0.1:8188")
    assert load_settings().backend is not None


@pytest.mark.sampled
@pytest.mark.parametrize(
    ("text", "workflows", "sentence"),
    [
        ("invokeai=http://127.0.0.1", (), re.escape(list_forms())),
        (KIND, (), "is needed"),
        (f"{KIND}=https://me:sk-secret@images.example", (), "the key belongs into DARKROOM_BACKEND_KEY"),
        (f"{KIND}=https://images.example?key=sk-secret", (), "the key belongs into DARKROOM_BACKEND_KEY"),
        (f"{KIND}=ftp://127.0.0.1", (), "an address without a key is needed"),
        (f"{KIND}=http://127.0.0.1", (Path("x.json"),), "--workflow is for --backend"),
        ("", (Path("x.json"),), "need --backend"),
    ],
)
def test_a_wrong_backend_is_refused_with_a_sentence_that_holds_no_key(
    text: str, workflows: tuple[Path, ...], sentence: str
) -> None:
    with pytest.raises(SettingError, match=sentence) as raised:
        load_settings(backend=text, workflows=workflows)
    assert "sk-secret" not in str(raised.value)
