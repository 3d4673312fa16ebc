"""Log files survive a flood of records, and hold no token of Discord."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from bot.cli.up import log_file
from bot.cli.up.log_file import MAX_ALIKE, MAX_KINDS, WINDOW_SECONDS, LogSummary, log_to_file

log = logging.getLogger("bot.web")
TOKEN = "aW50ZXJhY3Rpb246MTI2NDU2Nzg5MDpzZWNyZXQ"


class ListHandler(logging.Handler):
    """Keeps the messages."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@pytest.fixture
def flood() -> tuple[LogSummary, ListHandler, list[float]]:
    """A summary, what it writes, and its clock."""
    output = ListHandler()
    clock = [0.0]
    return LogSummary(output, clock=lambda: clock[0]), output, clock


def send(summary: LogSummary, message: str, *args: object, job: str = "", error: BaseException | None = None) -> None:
    exc_info = None if error is None else (type(error), error, None)
    record = logging.LogRecord("bot.web", logging.ERROR, __file__, 1, message, args, exc_info)
    if job:
        record.job = job
    summary.handle(record)


def test_records_alike_are_written_up_to_a_number_and_then_counted(flood):
    summary, output, clock = flood
    for number in range(5000):
        send(summary, "a request failed: %s", f"/path/{number}", error=OSError())
    assert output.messages == [f"a request failed: /path/{number}" for number in range(MAX_ALIKE)]
    clock[0] = WINDOW_SECONDS
    send(summary, "something else")
    assert output.messages[MAX_ALIKE:] == [
        "… 4,980 more like this in 60 s: a request failed: /path/4999",
        "something else",
    ]
    send(summary, "a request failed: %s", "/again", error=OSError())
    assert output.messages[-1] == "a request failed: /again"


def test_messages_that_differ_only_in_numbers_are_alike_and_other_jobs_are_not(flood):
    summary, output, _ = flood
    for number in range(100):
        send(summary, f"accept failed\nsocket: <fd={number}, at 0x7f{number:02x}>")
    assert len(output.messages) == MAX_ALIKE
    for number in range(100):
        send(summary, "job %s: sent", f"J{number}", job=f"J{number}")
        send(summary, "a request failed", error=ValueError() if number % 2 else OSError())
    assert len(output.messages) == MAX_ALIKE + 100 + 2 * MAX_ALIKE


def test_the_number_of_kinds_is_bounded_and_no_count_is_lost(flood):
    summary, output, _ = flood
    for _ in range(MAX_ALIKE + 3):
        send(summary, "first")
    for kind in range(MAX_KINDS):
        send(summary, "job", job=f"J{kind}")
    assert len(summary._windows) == MAX_KINDS
    assert [message for message in output.messages if "first" in message][MAX_ALIKE:] == [
        "… 3 more like this in 1 s: first"
    ]


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_flood_leaves_the_log_file_small_and_its_first_line_readable(tmp_path: Path, log_format):
    file = tmp_path / "darkroom.log"
    with log_to_file(file, log_format):
        log.info("Darkroom is open")
        for _ in range(3000):
            try:
                raise OSError(24, "Too many open files")
            except OSError:
                log.exception("accept failed")
    text = file.read_text()
    assert "Darkroom is open" in text
    assert "2,980 more like this" in (text if log_format == "text" else text.encode().decode("unicode_escape"))
    assert len(text) < 50_000
    assert list(tmp_path.iterdir()) == [file], "it was never rotated"


def test_a_summary_is_written_though_no_other_record_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(log_file, "WINDOW_SECONDS", 0.2)
    file = tmp_path / "darkroom.log"
    with log_to_file(file):
        for _ in range(30):
            log.error("accept failed")
        for _ in range(100):
            if "10 more like this" in file.read_text():
                break
            log_file.time.sleep(0.05)
        assert "10 more like this" in file.read_text()


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_tokens_of_interactions_are_in_no_log_line(tmp_path: Path, log_format):
    file = tmp_path / "darkroom.log"
    url = f"https://discord.com/api/v10/webhooks/1264567890/{TOKEN}/messages/@original"
    with log_to_file(file, log_format):
        logging.getLogger("discord.http").warning(
            "We are being rate limited. %s %s responded with 429. Retrying in %.2f seconds.", "PATCH", url, 1.5
        )
        logging.getLogger("discord.webhook.async_").warning(
            "Webhook ID 12 is rate limited: %s", "/interactions/77/short-token.x/callback?wait=1"
        )
        try:
            raise OSError(f"cannot reach {url}")
        except OSError:
            log.exception("interaction %s failed", TOKEN)
    text = file.read_text()
    lines = [json.loads(line)["message"] for line in text.splitlines()] if log_format == "json" else text.splitlines()
    assert TOKEN not in text
    assert "short-token" not in text
    assert any("PATCH https://discord.com/api/v10/webhooks/1264567890/(token)/messages/@original" in it for it in lines)
    assert any("/interactions/77/(token)/callback?wait=1" in line for line in lines)
    assert any("interaction (token) failed" in line for line in lines)
