"""The MCP server: its tools and resources, on any transport. It holds no state but who watches previews."""

from __future__ import annotations

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
    CallToolRequestParams,
    CallToolResult,
    EmptyResult,
    ListResourcesResult,
    ListResourceTemplatesResult,
    ListToolsResult,
    PaginatedRequestParams,
    ReadResourceRequestParams,
    ReadResourceResult,
    SubscribeRequestParams,
    TextContent,
    Tool,
    ToolAnnotations,
    UnsubscribeRequestParams,
)
from pydantic import BaseModel, ValidationError

from bot.apis.mcp import arguments, reports, resources, tools
from bot.apis.mcp.access import DarkroomAccess
from bot.apis.mcp.progress import WatchedPreviews
from bot.cli.imagine import http_client
from bot.cli.imagine.result import GenerationError
from bot.domain.errors import UserError

INSTRUCTIONS = (
    "Darkroom draws pictures from prompts on the user's own machine. Drawing takes seconds to minutes and reports its "
    "progress. Name a finished picture as JOB/NUMBER. Show the user the pictures that a tool returns."
)
Context = ServerRequestContext[Any, Any]


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
                return ListResourcesResult(resources=await resources.list_resources(session))
        except (UserError, GenerationError) as error:
            raise MCPError(INTERNAL_ERROR, str(error)) from error

    async def list_templates(
        self, context: Context, params: PaginatedRequestParams | None
    ) -> ListResourceTemplatesResult:
        return ListResourceTemplatesResult(resource_templates=list(resources.TEMPLATES))

    async def read_resource(self, context: Context, params: ReadResourceRequestParams) -> ReadResourceResult:
        try:
            async with await self._open_session(context) as session:
                return ReadResourceResult(contents=[await resources.read_resource(session, params.uri)])
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
