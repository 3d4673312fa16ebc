"""What an operator sets for webhooks: by a variable, or in the file's table of that name."""

from __future__ import annotations

from pathlib import Path

import pytest

from bot.app.settings import load_settings
from bot.domain.errors import UserError
from bot.features.webhooks.settings import WebhookSettings


def test_hosts_come_from_the_table_and_the_variable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert load_settings(data=tmp_path).of(WebhookSettings).hosts == ()
    (tmp_path / "darkroom.toml").write_text('[webhooks]\nhosts = ["hooks.lan"]\n')
    assert load_settings(data=tmp_path).of(WebhookSettings).hosts == ("hooks.lan",)
    monkeypatch.setenv("DARKROOM_WEBHOOKS_HOSTS", "10.0.0.7, 192.168.4.0/24")
    assert load_settings(data=tmp_path).of(WebhookSettings).hosts == ("10.0.0.7", "192.168.4.0/24")
    (tmp_path / "darkroom.toml").write_text("[webhooks]\nhost = 1\n")
    with pytest.raises(UserError, match=r"\[webhooks\]: there is no setting “host”; the nearest is hosts\.$"):
        load_settings(data=tmp_path)
