"""The MCP server: its tools and resources, on any transport. It holds no state but who watches previews."""

from __future__ import annotations

import base64
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from types import MappingProxyType
from typing import Any

import aiohttp
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.server.subscriptions import ListenHandler
from mcp.shared.exceptions import MCPError
from mcp_types import (
    INTERNAL_ERROR,
    INVALID_PARAMS,
    BlobResourceContents,
    CallToolRequestParams,
    CallToolResult,
    EmptyResult,
    ListResourcesResult,
    ListResourceTemplatesResult,
    ListToolsResult,
    PaginatedRequestParams,
    ReadResourceRequestParams,
    ReadResourceResult,
    Resource,
    ResourceTemplate,
    SubscribeRequestParams,
    TextContent,
    TextResourceContents,
    Tool,
    ToolAnnotations,
    UnsubscribeRequestParams,
)
from pydantic import BaseModel, ValidationError

from bot.apis.mcp import arguments, reports, tools
from bot.apis.mcp.access import DarkroomAccess
from bot.apis.mcp.arguments import JOB_PATTERN
from bot.apis.mcp.pictures import picture_path
from bot.apis.mcp.progress import WatchedPreviews, read_frames
from bot.apis.mcp.reports import QUEUE_URI, SCHEME, JobReport, PictureReport, report_job
from bot.apis.mcp.tools import link_picture, load_queue
from bot.cli.imagine import http_client
from bot.cli.imagine.result import GenerationError
from bot.domain.errors import UserError

INSTRUCTIONS = (
    "Darkroom draws pictures from prompts on the user's own machine. Drawing takes seconds to minutes and reports its "
    "progress. Name a finished picture as JOB/NUMBER. Show the user the pictures that a tool returns."
)
Context = ServerRequestContext[Any, Any]
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


@dataclass(frozen=True)
class ToolEntry:
    """A tool as it is listed, and what runs it. `draws`: it makes a new job."""

    title: str
    run: Callable[[tools.ToolCall, Any], Awaitable[CallToolResult]]
    arguments: type[arguments.Arguments]
    report: type[BaseModel]
    draws: bool = False
    cancels: bool = False


TOOLS: Mapping[str, ToolEntry] = MappingProxyType(
    {
        "imagine": ToolEntry("Draw", tools.imagine, arguments.ImagineArguments, reports.JobsReport, draws=True),
        "edit": ToolEntry("Edit a picture", tools.edit, arguments.EditArguments, reports.JobsReport, draws=True),
        "vary": ToolEntry("Vary a picture", tools.vary, arguments.PictureArguments, reports.JobsReport, draws=True),
        "upscale": ToolEntry(
            "Enlarge a picture", tools.upscale, arguments.PictureArguments, reports.JobsReport, draws=True
        ),
        "describe": ToolEntry(
            "Find a prompt for a picture", tools.describe, arguments.DescribeArguments, reports.DescriptionReport
        ),
        "job": ToolEntry("Show a job", tools.show_job, arguments.JobArguments, reports.JobReport),
        "cancel": ToolEntry(
            "Cancel a job", tools.cancel, arguments.CancelArguments, reports.SentenceReport, cancels=True
        ),
        "queue": ToolEntry("Show the queue", tools.show_queue, arguments.NoArguments, reports.QueueReport),
    }
)


def build_server(access: DarkroomAccess) -> Server:
    """Return the server, ready for a transport."""
    watch = WatchedPreviews()
    handlers = RequestHandlers(access, watch)
    return Server(
        "darkroom",
        title="Darkroom",
        version=version("darkroom-bot"),
        instructions=INSTRUCTIONS,
        on_list_tools=handlers.list_tools,
        on_call_tool=handlers.call_tool,
        on_list_resources=handlers.list_resources,
        on_list_resource_templates=handlers.list_templates,
        on_read_resource=handlers.read_resource,
        on_subscribe_resource=handlers.subscribe,
        on_unsubscribe_resource=handlers.unsubscribe,
        on_subscriptions_listen=ListenHandler(watch.bus),
    )


class RequestHandlers:
    """Answers the requests of the protocol, each with a session of its own to Darkroom."""

    def __init__(self, access: DarkroomAccess, watch: WatchedPreviews) -> None:
        self._access = access
        self._watch = watch

    async def list_tools(self, context: Context, params: PaginatedRequestParams | None) -> ListToolsResult:
        return ListToolsResult(tools=[describe_tool(name, entry) for name, entry in TOOLS.items()])

    async def call_tool(self, context: Context, params: CallToolRequestParams) -> CallToolResult:
        """Run a tool. What Darkroom refuses is a result that the assistant reads, not an error of the protocol."""
        entry = TOOLS.get(params.name)
        if entry is None:
            raise MCPError(INVALID_PARAMS, f"There is no tool {params.name[:50]!r}, only {', '.join(TOOLS)}.")
        try:
            values = entry.arguments.model_validate(params.arguments or {})
            timeout = http_client.DESCRIBE_TIMEOUT if params.name == "describe" else http_client.REQUEST_TIMEOUT
            async with await self._open_session(context, timeout) as session:
                call = tools.ToolCall(context, session, self._watch, not self._access.is_shared)
                return await entry.run(call, values)
        except ValidationError as error:
            return _refuse(_describe_mistake(error))
        except (UserError, GenerationError) as error:
            return _refuse(str(error))

    async def list_resources(self, context: Context, params: PaginatedRequestParams | None) -> ListResourcesResult:
        try:
            async with await self._open_session(context) as session:
                return ListResourcesResult(resources=await list_resources(session))
        except (UserError, GenerationError) as error:
            raise MCPError(INTERNAL_ERROR, str(error)) from error

    async def list_templates(
        self, context: Context, params: PaginatedRequestParams | None
    ) -> ListResourceTemplatesResult:
        return ListResourceTemplatesResult(resource_templates=list(TEMPLATES))

    async def read_resource(self, context: Context, params: ReadResourceRequestParams) -> ReadResourceResult:
        try:
            async with await self._open_session(context) as session:
                return ReadResourceResult(contents=[await read_resource(session, params.uri)])
        except (UserError, GenerationError) as error:
            code = INVALID_PARAMS if isinstance(error, UserError) else INTERNAL_ERROR
            raise MCPError(code, str(error), {"uri": params.uri}) from error

    async def subscribe(self, context: Context, params: SubscribeRequestParams) -> EmptyResult:
        self._watch.add(params.uri)
        return EmptyResult()

    async def unsubscribe(self, context: Context, params: UnsubscribeRequestParams) -> EmptyResult:
        self._watch.remove(params.uri)
        return EmptyResult()

    async def _open_session(
        self, context: Context, timeout: aiohttp.ClientTimeout = http_client.REQUEST_TIMEOUT
    ) -> aiohttp.ClientSession:
        headers: Mapping[str, str] = getattr(context.request, "headers", {})
        return await self._access.open_session(headers.get("authorization", ""), timeout)


def describe_tool(name: str, entry: ToolEntry) -> Tool:
    """Return a tool as `tools/list` has it."""
    hints = ToolAnnotations(
        read_only_hint=not (entry.draws or entry.cancels),
        destructive_hint=entry.cancels,
        idempotent_hint=not entry.draws,
        open_world_hint=False,
    )
    return Tool(
        name=name,
        title=entry.title,
        description=(entry.run.__doc__ or "").strip(),
        input_schema=entry.arguments.model_json_schema(),
        output_schema=entry.report.model_json_schema(),
        annotations=hints,
    )


def _describe_mistake(error: ValidationError) -> str:
    """Return the first mistake of the arguments as a sentence, without the value that was sent."""
    mistake = error.errors(include_url=False, include_input=False)[0]
    name = ".".join(str(part) for part in mistake["loc"]) or "the arguments"
    return f"{name} is not valid: {mistake['msg'][:1].lower()}{mistake['msg'][1:]}."


def _refuse(sentence: str) -> CallToolResult:
    return CallToolResult(content=[TextContent(text=sentence)], is_error=True)


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
