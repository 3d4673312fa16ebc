"""`darkroom steer`: what its options send, which job they mean, and how an answer reads."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from bot.__main__ import app
from bot.cli import steer
from bot.cli.imagine import http_client
from bot.cli.instance_lock import RunningInstance
from bot.domain.errors import UserError


def test_the_options_become_the_body_of_the_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[tuple[str, dict[str, object]]] = []

    async def answer(_url: str, _key: str, job: str, body: dict[str, object]) -> dict[str, Any]:
        sent.append((job, body))
        made = {"number": 1, "state": "made", "step": 21, "total_steps": 40, "reason": "", "text": "keeps image 2"}
        return {"id": job, "changes": [made]}

    async def is_running(_url: str) -> bool:
        return True

    monkeypatch.setattr(steer, "send_changes", answer)
    monkeypatch.setattr(http_client, "is_darkroom_running", is_running)
    monkeypatch.setattr("bot.cli.instance_lock.find_instance", lambda _folder: RunningInstance("http://127.0.0.1:1", 1))
    options = '01J --say blue --weight 0 --no "" --keep 2 --split 2:3 --weigh 2=0.5 --interval 0.2-0.8 --fade 9 --data'
    result = CliRunner().invoke(app, ["steer", *shlex.split(options), str(tmp_path)])
    assert (result.exit_code, result.stdout) == (0, "keeps image 2: from step 21 of 40 on\n"), result.output
    words = {"say": "blue", "weight": 0.0, "weights": {"2": 0.5}, "negative": ""}
    others = {"interval": [0.2, 0.8], "keep": [2], "split": {"image": 2, "into": 3}, "fade": 9}
    assert sent == [("01J", words | others)]


def test_a_beginning_names_one_job_only() -> None:
    jobs = [{"id": "01JA"}, {"id": "01JB"}]
    assert steer.choose_job("01ja", jobs) == "01JA"
    assert steer.choose_job("01X", jobs) == "01X"
    with pytest.raises(UserError, match="2 jobs begin with 01J"):
        steer.choose_job("01J", jobs)


def test_a_malformed_option_says_its_form() -> None:
    for parse, argument in ((steer.parse_weights, ["fox"]), (steer.parse_split, "2"), (steer.parse_interval, "often")):
        with pytest.raises(UserError):
            parse(argument)  # pyright: ignore[reportArgumentType]  (each takes its own form)
