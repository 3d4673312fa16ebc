"""The tools: each turns its arguments into requests to Darkroom, and the answers into what an assistant reads."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import aiohttp
import anyio
from mcp.server.context import ServerRequestContext
from mcp_types import CallToolResult, ContentBlock, ResourceLink, TextContent
from pydantic import BaseModel

from bot.apis.mcp.arguments import (
    CancelArguments,
    DescribeArguments,
    EditArguments,
    ImagineArguments,
    JobArguments,
    NoArguments,
    PictureArguments,
)
from bot.apis.mcp.pictures import make_copy, parse_job_picture, picture_path, read_picture, read_upload, show_jpeg
from bot.apis.mcp.progress import ProgressReporter, WatchedPreviews, read_frames
from bot.apis.mcp.reports import (
    DescriptionReport,
    JobReport,
    JobsReport,
    PictureReport,
    QueueReport,
    SentenceReport,
    report_job,
)
from bot.cli.imagine import http_client
from bot.cli.imagine.job_inputs import ApiRequest
from bot.cli.imagine.result import GenerationError
from bot.domain.errors import UserError
from bot.domain.job_states import END_STATES

CANCEL_SECONDS = 5.0  # that cancelling the jobs of an abandoned call may take


@dataclass(frozen=True)
class ToolCall:
    """One call: its request to the server, and a session that carries its caller's key to Darkroom."""

    context: ServerRequestContext[Any, Any]
    session: aiohttp.ClientSession
    watch: WatchedPreviews
    reads_files: bool

    async def get(self, path: str) -> dict[str, Any]:
        return await http_client.send_request(self.session, "GET", path)


async def imagine(call: ToolCall, arguments: ImagineArguments) -> CallToolResult:
    """Draw pictures from a prompt. Returns small copies to look at, and links to the full pictures."""
    return await _run_jobs(call, ApiRequest("/api/jobs", arguments.options()), waits=arguments.wait)


async def edit(call: ToolCall, arguments: EditArguments) -> CallToolResult:
    """Draw a picture anew from a prompt: all of it, only where a mask is white, or as words say."""
    body = arguments.options()
    files = list[tuple[str, bytes]]()
    if parse_job_picture(arguments.picture):
        body["init_images"] = [arguments.picture.strip()]
    else:
        files.append(("picture", await read_upload(arguments.picture, reads_files=call.reads_files)))
    if arguments.mask is not None:
        files.append(("mask", await read_picture(call.session, arguments.mask, reads_files=call.reads_files)))
    if arguments.by_words:
        body["edit"] = True
    return await _run_jobs(call, ApiRequest("/api/jobs", body, tuple(files)), waits=arguments.wait)


async def vary(call: ToolCall, arguments: PictureArguments) -> CallToolResult:
    """Draw variations of a finished picture."""
    path = f"/api/jobs/{arguments.job}/vary/{arguments.picture}"
    return await _run_jobs(call, ApiRequest(path, {}), waits=arguments.wait)


async def upscale(call: ToolCall, arguments: PictureArguments) -> CallToolResult:
    """Enlarge a finished picture."""
    path = f"/api/jobs/{arguments.job}/upscale/{arguments.picture}"
    return await _run_jobs(call, ApiRequest(path, {}), waits=arguments.wait)


async def describe(call: ToolCall, arguments: DescribeArguments) -> CallToolResult:
    """Suggest prompts for a picture, the best first. Takes a while."""
    content = await read_picture(call.session, arguments.picture, reads_files=call.reads_files)
    answer = await http_client.request_description(call.session, content, arguments.model)
    report = DescriptionReport.model_validate(answer)
    lines = [suggestion.prompt for suggestion in report.prompts]
    return _answer(report, "\n".join([*lines, report.sentence, *report.notes]))


async def show_job(call: ToolCall, arguments: JobArguments) -> CallToolResult:
    """Return how far a job is, with its newest previews while it runs, and its pictures once it is finished."""
    answer = await call.get(f"/api/jobs/{arguments.job}")
    frames = (
        await read_frames(call.session, arguments.job) if arguments.preview and answer["state"] == "running" else {}
    )
    pictures = [show_jpeg(jpeg) for _, jpeg in sorted(frames.items())]
    report = report_job(answer)
    if report.state in END_STATES:
        return _answer(report, _describe_job(report), await _show_pictures(call, [report]))
    return _answer(report, _describe_job(report), pictures)


async def cancel(call: ToolCall, arguments: CancelArguments) -> CallToolResult:
    """Cancel a job that waits or runs."""
    answer = await http_client.send_request(call.session, "DELETE", f"/api/jobs/{arguments.job}")
    return _answer(SentenceReport(job=answer["id"], sentence=answer["sentence"]), answer["sentence"])


async def show_queue(call: ToolCall, arguments: NoArguments) -> CallToolResult:
    """List the running and waiting jobs, and the models."""
    report = await load_queue(call.session)
    lines = [_describe_job(job) for job in report.jobs] or ["Nothing waits."]
    models = [f"Models: {', '.join(report.models)}."] if report.models else []
    return _answer(report, "\n".join([*lines, *models, report.sentence]).strip())


async def load_queue(session: aiohttp.ClientSession) -> QueueReport:
    """Return the jobs that have not ended, as the caller may see them."""
    jobs = await http_client.send_request(session, "GET", "/api/jobs")
    workers = await http_client.send_request(session, "GET", "/api/workers")
    open_jobs = [report_job(job) for job in jobs["jobs"] if job["state"] not in END_STATES]
    return QueueReport(jobs=open_jobs, models=workers["models"], sentence=workers["sentence"])


async def _run_jobs(call: ToolCall, request: ApiRequest, *, waits: bool) -> CallToolResult:
    """Submit a request, follow its jobs, and answer with their pictures. A cancelled call cancels them."""
    accepted = await _submit(call, request)
    ids = [str(job) for job in accepted["ids"]]
    if waits:
        await _follow_jobs(call, ids)
    reports = [report_job(await call.get(f"/api/jobs/{job}")) for job in ids]
    if waits and all(report.state != "finished" for report in reports):
        raise UserError(reports[0].reason or f"The job was {reports[0].state}.")
    notes = [str(note) for note in accepted["notes"]]
    sentences = [*map(_describe_job, reports), *notes]
    return _answer(JobsReport(jobs=reports, notes=notes), "\n".join(sentences), await _show_pictures(call, reports))


async def _submit(call: ToolCall, request: ApiRequest) -> dict[str, Any]:
    """Return the answer to a request. If the call is cancelled before it comes, its jobs are cancelled."""
    sending = asyncio.ensure_future(
        http_client.send_request(call.session, "POST", request.path, request.body, request.files)
    )
    try:
        return await asyncio.shield(sending)
    except anyio.get_cancelled_exc_class():
        with anyio.move_on_after(CANCEL_SECONDS, shield=True), suppress(UserError, GenerationError):
            await _cancel_jobs(call, (await sending)["ids"])
        raise


async def _cancel_jobs(call: ToolCall, jobs: Sequence[str]) -> None:
    for job in jobs:
        with suppress(UserError):  # it has ended
            await http_client.send_request(call.session, "DELETE", f"/api/jobs/{job}")


async def _follow_jobs(call: ToolCall, jobs: Sequence[str]) -> None:
    reporter = ProgressReporter(call.context, call.watch, len(jobs))
    try:
        for position, job in enumerate(jobs):
            async for event, value in http_client.follow_job(call.session, job):
                await reporter.report(position, event, value)
    except anyio.get_cancelled_exc_class():
        with anyio.move_on_after(CANCEL_SECONDS, shield=True), suppress(GenerationError):
            await _cancel_jobs(call, jobs)
        raise


async def _show_pictures(call: ToolCall, reports: Sequence[JobReport]) -> list[ContentBlock]:
    """Return a small copy of each visible picture, and a link to the picture itself."""
    content: list[ContentBlock] = []
    for report in reports:
        for picture in report.pictures:
            if not picture.held:
                png = await http_client.fetch_bytes(call.session, picture_path(report.job, picture.number))
                content += [await make_copy(png), link_picture(report, picture)]
    return content


def link_picture(report: JobReport, picture: PictureReport) -> ResourceLink:
    """Return a link to a finished picture."""
    title = f"{report.prompt[:80]} ({picture.width} × {picture.height})"
    return ResourceLink(uri=picture.uri, name=f"{report.job}/{picture.number}", title=title, mime_type="image/png")


def _describe_job(report: JobReport) -> str:
    """Return a job as a line of text, for clients that read no structured content."""
    line = f"Job {report.job} is {report.state}: {report.prompt[:200]!r}"
    if report.state == "finished":
        names = [f"{report.job}/{picture.number}" for picture in report.pictures]
        return f"{line}. Pictures: {', '.join(names)}." + ("" if report.seed is None else f" Seed {report.seed}.")
    return f"{line}, {report.percent} % drawn. {report.reason}".strip()


def _answer(report: BaseModel, text: str, content: Sequence[ContentBlock] = ()) -> CallToolResult:
    structured: Mapping[str, Any] = report.model_dump(mode="json")
    return CallToolResult(content=[TextContent(text=text), *content], structured_content=structured)
