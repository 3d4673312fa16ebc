"""The resources: finished pictures, previews of running jobs, jobs and the queue, each read with its caller's key."""

from __future__ import annotations

import base64
import re

import aiohttp
from mcp_types import BlobResourceContents, Resource, ResourceTemplate, TextResourceContents

from bot.apis.mcp.arguments import JOB_PATTERN
from bot.apis.mcp.pictures import picture_path
from bot.apis.mcp.progress import read_frames
from bot.apis.mcp.reports import QUEUE_URI, SCHEME, JobReport, PictureReport, report_job
from bot.apis.mcp.tools import link_picture, load_queue
from bot.cli.imagine import http_client
from bot.domain.errors import UserError

JSON_TYPE = "application/json"
ADDRESS = re.compile(rf"{SCHEME}jobs/({JOB_PATTERN})(?:/(pictures|previews)/([1-4]))?")
MAX_LISTED = 50  # pictures
TEMPLATES = (
    ResourceTemplate(
        name="picture",
        title="A finished picture",
        uri_template=f"{SCHEME}jobs/{{job}}/pictures/{{number}}",
        mime_type="image/png",
    ),
    ResourceTemplate(
        name="preview",
        title="A picture that is being drawn",
        mime_type="image/jpeg",
        uri_template=f"{SCHEME}jobs/{{job}}/previews/{{number}}",
        description="It changes at each step: subscribe to it to hear of that.",
    ),
    ResourceTemplate(name="job", title="A job", uri_template=f"{SCHEME}jobs/{{job}}", mime_type=JSON_TYPE),
)


async def list_resources(session: aiohttp.ClientSession) -> list[Resource]:
    """Return the queue, and the newest finished pictures of the caller."""
    jobs = await http_client.send_request(session, "GET", "/api/jobs")
    reports = [report_job(job) for job in jobs["jobs"] if job["state"] == "finished" and job["author"]["you"]]
    links = [_list_picture(report, picture) for report in reports for picture in report.pictures if not picture.held]
    queue = Resource(uri=QUEUE_URI, name="queue", title="The queue", mime_type=JSON_TYPE)
    return [queue, *links[:MAX_LISTED]]


def _list_picture(report: JobReport, picture: PictureReport) -> Resource:
    link = link_picture(report, picture)
    return Resource(uri=link.uri, name=link.name, title=link.title, mime_type=link.mime_type)


async def read_resource(session: aiohttp.ClientSession, uri: str) -> TextResourceContents | BlobResourceContents:
    """Return what is at an address of ours. Raise `UserError`, or `GenerationError` if Darkroom does not answer."""
    if uri == QUEUE_URI:
        return _json_contents(uri, (await load_queue(session)).model_dump_json())
    match = ADDRESS.fullmatch(uri)
    if match is None:
        raise UserError("There is nothing at this address.", 404)
    job, kind, number = match.groups()
    if kind is None:
        report = report_job(await http_client.send_request(session, "GET", f"/api/jobs/{job}"))
        return _json_contents(uri, report.model_dump_json())
    if kind == "pictures":
        return _file_contents(uri, await http_client.fetch_bytes(session, picture_path(job, int(number))), "image/png")
    return _file_contents(uri, await _read_preview(session, job, int(number)), "image/jpeg")


async def _read_preview(session: aiohttp.ClientSession, job: str, number: int) -> bytes:
    await http_client.send_request(session, "GET", f"/api/jobs/{job}")  # refused, if it is hidden from this caller
    frames = await read_frames(session, job)
    if number not in frames:
        raise UserError("There is no preview now: the job waits or has ended.", 404)
    return frames[number]


def _json_contents(uri: str, text: str) -> TextResourceContents:
    return TextResourceContents(uri=uri, text=text, mime_type=JSON_TYPE)


def _file_contents(uri: str, content: bytes, mime_type: str) -> BlobResourceContents:
    return BlobResourceContents(uri=uri, blob=base64.b64encode(content).decode(), mime_type=mime_type)
