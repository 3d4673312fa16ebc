"""One request to the loopback Discord, and the parser of its body: JSON, or a multipart form with files."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web


@dataclass
class File:
    """An uploaded file in the form that simcord expects."""

    filename: str
    payload: bytes
    description: str | None = None
    fp: io.BytesIO = field(init=False)

    def __post_init__(self) -> None:
        self.fp = io.BytesIO(self.payload)


@dataclass
class RecordedRequest:
    """One request and its outcome. Times are the server clock's."""

    method: str
    path: str  # without the API's prefix
    query: dict[str, str]
    received_at: float
    body: Any = None
    files: list[File] = field(default_factory=list)
    status: int = 0
    answered_at: float = 0.0

    @property
    def size(self) -> int:
        return sum(len(each.payload) for each in self.files)


async def read(request: web.Request) -> tuple[Any, list[File]]:
    """The body as JSON, and the files of a multipart body with their descriptions."""
    if not request.content_type.startswith("multipart/"):
        raw = await request.read()
        return (json.loads(raw) if raw else None), []
    body: Any = None
    files: dict[int, File] = {}
    parts: Any = await request.multipart()
    async for part in parts:
        if part.name == "payload_json":
            body = json.loads(await part.text())
        else:
            files[int(part.name[6:-1])] = File(part.filename, bytes(await part.read()))  # "files[3]"
    data = (body or {}).get("data") or body or {}
    for attachment in data.get("attachments") or ():
        if int(attachment["id"]) in files:
            files[int(attachment["id"])].description = attachment.get("description")
    return body, [files[number] for number in sorted(files)]
