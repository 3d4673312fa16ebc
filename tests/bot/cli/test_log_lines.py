"""Log lines: the job of each, as text and as JSON, and no input that forges a line."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import stat
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bot.app.settings import load_settings
from bot.cli.up import log_file
from bot.cli.up.log_file import log_to_file
from bot.domain.errors import UserError
from engine.process.log_format import JsonFormatter, TextFormatter, job_of, log_context

JOB = "01JZ0000000000000000000001"
OTHER = "01JZ0000000000000000000002"
LINE = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"
FORGED = "x\n2026-01-01 00:00:00,000 ERROR   bot: all is lost\r\x1b[2K\u2028y"
BEGINS = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} ")


def record(message: str, *args: object, error: BaseException | None = None, **extra: object) -> logging.LogRecord:
    exc_info = None if error is None else (type(error), error, error.__traceback__)
    entry = logging.LogRecord("bot.jobs", logging.WARNING, __file__, 1, message, args, exc_info)
    vars(entry).update(extra)
    return entry


@settings(max_examples=50)
@given(st.text(), st.text())
def test_any_message_is_one_line_and_a_traceback_is_indented(message, error_text):
    try:
        raise ValueError(error_text)
    except ValueError as error:
        plain_record = record("job %s: %s", JOB, message)
        error_record = record("%s", message, error=error)
    assert len(TextFormatter(LINE).format(plain_record).splitlines()) == 1
    first, *other_lines = TextFormatter(LINE).format(error_record).splitlines()
    assert BEGINS.match(first)
    assert other_lines
    assert all(line.startswith("    ") and line.isprintable() for line in other_lines)
    for each in (plain_record, error_record):
        (line,) = JsonFormatter().format(each).splitlines()
        assert message in json.loads(line)["message"]
    assert error_text in json.loads(JsonFormatter().format(error_record))["exception"]


def test_a_forged_line_stays_inside_its_own():
    line = TextFormatter(LINE).format(record("refused: %s", FORGED))
    assert line.endswith(r"refused: x\n2026-01-01 00:00:00,000 ERROR   bot: all is lost\r\x1b[2K\u2028y")


def test_a_json_line_has_every_field():
    parsed_line = json.loads(JsonFormatter("here").format(record("job %s: sent", JOB)))
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", parsed_line.pop("time"))
    assert parsed_line == {
        "level": "warning",
        "logger": "bot.jobs",
        "message": f"job {JOB}: sent",
        "job": JOB,
        "worker": "here",
    }


def test_a_log_line_names_its_job():
    assert job_of(record("the broker is away")) == ""
    with log_context(JOB, "desk"):
        assert job_of(record("the broker is away")) == JOB
        assert job_of(record("job %s: gone", OTHER)) == OTHER
        assert job_of(record("gone", job=OTHER)) == OTHER
        assert json.loads(JsonFormatter("here").format(record("again")))["worker"] == "desk"
        assert TextFormatter("%(message)s").format(record("the broker is away")) == f"the broker is away (job {JOB})"
        with log_context(OTHER):
            assert job_of(record("again")) == OTHER
        assert job_of(record("again")) == JOB
    assert job_of(record("again")) == ""


@pytest.mark.asyncio
async def test_tasks_of_a_job_inherit_it_and_other_tasks_do_not():
    async def job_of_task() -> str:
        await asyncio.sleep(0)
        return job_of(record("again"))

    with log_context(JOB):
        task = asyncio.create_task(job_of_task())
    outside = asyncio.create_task(job_of_task())
    assert await asyncio.gather(task, outside) == [JOB, ""]


def test_the_log_setting_is_read_and_a_bad_value_gives_a_sentence(monkeypatch, tmp_path):
    assert load_settings(data=tmp_path).log_format == "text"
    monkeypatch.setenv("DARKROOM_LOG_FORMAT", "json")
    assert load_settings(data=tmp_path).log_format == "json"
    monkeypatch.setenv("DARKROOM_LOG_FORMAT", "xml")
    with pytest.raises(UserError, match="DARKROOM_LOG_FORMAT is not valid: input should be 'text' or 'json'"):
        load_settings(data=tmp_path)


def test_a_worker_writes_json_lines_to_stderr():
    code = (
        "import logging, warnings\nfrom engine.process.log_format import configure_stderr\n"
        "configure_stderr('json', 'shed')\n"
        "logging.getLogger('engine').info('job %s begins', 'J\\nX')\nwarnings.warn('old')\n"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    first, second = map(json.loads, process.stderr.splitlines())
    assert (first["worker"], first["job"], first["message"]) == ("shed", "J\nX", "job J\nX begins")
    assert second["logger"] == "py.warnings"


@pytest.mark.may_block("a handler of the standard library opens and writes its file where it is called")
@pytest.mark.asyncio
async def test_a_search_for_a_job_finds_all_its_log_lines(harness, wait_until, ann, destination, tmp_path):
    log = tmp_path / "darkroom.log"
    with log_to_file(log, "json"):
        app = await harness.open_app()
        await harness.start_worker()
        (accepted,) = await app.services.jobs.imagine("a lamp\nERROR: --seed 1", ann, destination)

        async def is_finished() -> bool:
            return (await app.services.job_views.load_view(accepted.job)).state == "finished"

        await wait_until(is_finished)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    messages = [line["message"] for line in lines if line.get("job") == accepted.job]
    assert [message.partition(": ")[2].strip() for message in messages] == ["sent, attempt 1", "finished"]
    assert all(line.get("job") == accepted.job for line in lines if accepted.job in line["message"])


def test_the_log_and_its_rotated_parts_are_their_owners_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(log_file, "MAX_FILE_BYTES", 200)
    old_umask = os.umask(0o022)
    (tmp_path / "darkroom.log").touch(mode=0o644)  # a copied one
    try:
        with log_to_file(tmp_path / "darkroom.log"):
            for number in range(5):
                logging.getLogger("bot.test").info("line %d %s", number, "x" * 100)
    finally:
        os.umask(old_umask)
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == ["darkroom.log", "darkroom.log.1", "darkroom.log.2"]
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
