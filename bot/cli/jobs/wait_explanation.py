"""Explains why a job waits, for `darkroom jobs why`: its place in the queue from SQL, and what the running bot knows.

Only the bot knows the live workers, and so when a job will be done. Without a bot, it explains only the order of the
queue.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bot.cli.imagine import http_client
from bot.cli.imagine.result import GenerationError
from bot.cli.instance_lock import find_instance
from bot.cli.jobs import admin
from bot.cli.store_session import load_store_settings
from bot.domain.errors import UserError
from bot.domain.job_states import is_end
from bot.domain.texts import format_duration, format_job_count, shorten
from bot.jobs.active_jobs import ActiveJobs
from bot.jobs.forecast import Forecast
from bot.store import JobRecord, Store
from bot.store.jobs import queries
from bot.web.auth import terminal_key

MAX_NAMED_JOBS = 3  # how many of the jobs ahead the sentence names
NO_BOT_NOTE = "No running bot answers on this data folder: the workers and the waiting time are not known."


@dataclass(frozen=True)
class WaitExplanation:
    """Why one job waits.

    `ahead_ids`: ids of the jobs before it, the next to be dispatched first, as far as the queue is laid out.
    `bot_answer`: the running bot's answer, or None.
    """

    record: JobRecord
    ahead_ids: Sequence[str]
    ahead_count: int | None
    bot_answer: Mapping[str, Any] | None
    sentence: str

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        bot_answer = self.bot_answer or {}
        return {
            "id": self.record.id,
            "state": self.record.state,
            "jobs_ahead": self.ahead_count,
            "ahead_ids": list(self.ahead_ids),
            "wait_reason": bot_answer.get("wait_reason", ""),
            "eta": bot_answer.get("eta"),
            "has_bot": self.bot_answer is not None,
            "sentence": self.sentence,
        }


def explain_wait(data: Path | None, id_prefix: str) -> WaitExplanation:
    """Explain why one job waits, found by the beginning of its id. Raise `UserError`."""
    record, ahead_count, jobs_ahead = admin.run_on_folder_store(data, lambda store: _find_queue_place(store, id_prefix))
    bot_answer = asyncio.run(_ask_bot(load_store_settings(data).data, record))
    return WaitExplanation(
        record,
        [job.id for job in jobs_ahead],
        ahead_count,
        bot_answer,
        _explanation_text(record, ahead_count, jobs_ahead, bot_answer),
    )


async def _find_queue_place(store: Store, id_prefix: str) -> tuple[JobRecord, int | None, list[JobRecord]]:
    """Return the job, how many start before it, and the first of these."""
    record = await admin.find_job(store, id_prefix)
    forecast = Forecast(store, ActiveJobs(), dict)
    queue_place = await forecast.get_place(record)
    if queue_place is None:
        return record, None, []
    queue_order = [
        job for job, job_place in (await forecast.get_layout()).places.items() if job_place.pool == record.pool
    ]
    ahead_ids = queue_order[: queue_order.index(record.id)] if record.id in queue_order else []
    records = await store.query(queries.get_jobs, ahead_ids[:100])
    return record, queue_place.jobs_ahead, [records[job] for job in ahead_ids[:100] if job in records]


async def _ask_bot(data: Path, record: JobRecord) -> Mapping[str, Any] | None:
    """Return what the bot that runs on this folder says of the job; None if none answers."""
    instance = find_instance(data)
    if instance is None or is_end(record.state) or not await http_client.is_darkroom_running(instance.url):
        return None
    key = await asyncio.to_thread(terminal_key, data)
    try:
        return await http_client.request_json("GET", instance.url, key, f"/api/jobs/{record.id}/wait-reason")
    except (UserError, GenerationError):
        return None


def _explanation_text(
    record: JobRecord, ahead_count: int | None, jobs_ahead: Sequence[JobRecord], bot_answer: Mapping[str, Any] | None
) -> str:
    if is_end(record.state):
        return f"It does not wait: it {_describe_end(record)}."
    eta = (
        ""
        if bot_answer is None or bot_answer.get("eta") is None
        else f"; done in about {format_duration(float(bot_answer['eta']))}"
    )
    if record.cancelling:
        return "It is being cancelled: it ends at its worker's next step, or when its worker is not there any more."
    if record.state == "running":
        step = max(record.step, int(bot_answer["step"]) if bot_answer else 0)
        return f"It does not wait: {record.worker} has it, at step {step} of {record.steps}{eta}."
    if record.state == "sent":
        return (
            f"It is on its way to a worker since {format_duration(time.time() - (record.sent or record.created))}{eta}."
        )
    line = (
        f"{format_job_count(ahead_count)} ahead of it{_name_jobs_ahead(jobs_ahead, ahead_count)}"
        if ahead_count
        else "Next in line"
    )
    reason = str(bot_answer.get("wait_reason", "")) if bot_answer else NO_BOT_NOTE
    if reason.startswith(("Next in line", f"{ahead_count} ahead")):  # repeats the line above
        reason = "" if ahead_count else "It starts when there is room."
    return f"{line}{eta}. {reason}".rstrip()


def _describe_end(record: JobRecord) -> str:
    time_text = f"{format_duration(time.time() - record.ended)} ago" if record.ended else "already"
    reason_text = f": {record.reason.rstrip('.')}" if record.reason else ""
    return (
        ("was cancelled " if record.state == "cancelled" else f"{record.state} ")
        + time_text
        + shorten(reason_text, 300)
    )


def _name_jobs_ahead(jobs_ahead: Sequence[JobRecord], ahead_count: int) -> str:
    """Return ": Ann's 01J…, Bob's 01J…, and 2 more"; empty where the queue is too long to be laid out."""
    names = [f"{shorten(record.member_name, 20)}'s {record.id}" for record in jobs_ahead[:MAX_NAMED_JOBS]]
    if ahead_count > len(names) and names:
        names.append(f"and {ahead_count - len(names)} more")
    return f": {', '.join(names)}" if names else ""
