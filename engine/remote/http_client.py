"""HTTP to a backend: waits and bodies are bounded, every failure is one sentence, and the key is never shown."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import re
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from typing import Any, cast

import aiohttp
from yarl import URL

from engine.contract import Blame, JobRejected
from engine.remote.drawing import MAX_PICTURE_SECONDS, BackendBusy, BackendUnreachable, KeyRefused

MAX_LIST_BYTES = 16 * 1024 * 1024
MAX_PICTURE_BYTES = 96 * 1024 * 1024  # a picture of 64 MiB in base64
MAX_REASON = 200  # characters of a backend's own words that we repeat
CONNECT_SECONDS = 10.0
LIST_SECONDS = 30.0
SILENCE_SECONDS = 600.0
# Of a request that is answered by a picture, with nothing to read before.
DRAW_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=MAX_PICTURE_SECONDS)
MAX_MESSAGE = 2000  # characters of a backend's own words in which we look for a field's name
DOWN_STATUSES = (502, 503, 504)
# before a backend that limits us is asked again
USUAL_WAIT_SECONDS = 5.0
MAX_WAIT_SECONDS = 60.0


class BackendHttp:
    """One backend's address. `headers` carry its key. `silence`: seconds without a byte, but for a picture."""

    def __init__(self, name: str, url: str, headers: Mapping[str, str], silence: float = SILENCE_SECONDS) -> None:
        self.name = name
        self._url = URL(url.rstrip("/") + "/")
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=silence)
        tracing = aiohttp.TraceConfig()
        tracing.on_request_redirect.append(self._refuse_redirect)
        self._session = aiohttp.ClientSession(headers=dict(headers), timeout=timeout, trace_configs=[tracing])

    async def close(self) -> None:
        await self._session.close()

    async def get_json(self, path: str, query: Mapping[str, str] | None = None) -> Any:
        """Return a list or description, which comes at once. Raises `BackendUnreachable` or `JobRejected`."""
        try:
            async with asyncio.timeout(LIST_SECONDS), self.request("GET", path, params=query or {}) as response:
                return parse_json(await read_body(response, MAX_LIST_BYTES), self.name)
        except TimeoutError as error:  # ours: it passes the request as a cancellation
            raise self.describe_outage(error) from error

    async def post_json(self, path: str, value: Any) -> Any:
        """Post a value and return the answer; None for an empty one."""
        async with self.request("POST", path, json=value) as response:
            body = await read_body(response, MAX_LIST_BYTES)
            return parse_json(body, self.name) if body.strip() else None

    async def post_drawing(self, path: str, value: Any) -> Any:
        """Post what is to be drawn and return the answer, which comes with the picture."""
        async with self.request("POST", path, json=value, timeout=DRAW_TIMEOUT) as response:
            return parse_json(await read_body(response, MAX_PICTURE_BYTES), self.name)

    @asynccontextmanager
    async def request(self, method: str, path: str, **options: Any) -> AsyncGenerator[aiohttp.ClientResponse]:
        """Send a request and check the status. Redirects are refused: the key belongs to this address alone."""
        try:
            async with self._session.request(
                method, self._url.join(URL(path.lstrip("/"))), allow_redirects=False, **options
            ) as response:
                if response.status != 200:
                    await self._refuse(response)
                yield response
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise self.describe_outage(error) from error

    @asynccontextmanager
    async def open_websocket(self, path: str, max_bytes: int) -> AsyncGenerator[aiohttp.ClientWebSocketResponse]:
        """Open a websocket, at this address alone. Raises `BackendUnreachable`."""
        try:
            async with self._session.ws_connect(
                self._url.join(URL(path.lstrip("/"))), max_msg_size=max_bytes, heartbeat=30.0
            ) as websocket:
                yield websocket
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise self.describe_outage(error) from error

    def describe_outage(self, error: BaseException) -> BackendUnreachable:
        """Return the one sentence that log and operator see."""
        if isinstance(error, BackendUnreachable):
            return error
        where = f"{self._url.host}:{self._url.port}"
        return BackendUnreachable(f"{self.name} at {where} does not answer: {type(error).__name__}.")

    async def _refuse_redirect(
        self, session: aiohttp.ClientSession, context: object, redirect: aiohttp.TraceRequestRedirectParams
    ) -> None:
        """Refuse to go on: a websocket of aiohttp follows redirects, and takes the key along within a host."""
        redirect.response.close()
        raise aiohttp.TooManyRedirects(redirect.response.request_info, (redirect.response,))

    async def _refuse(self, response: aiohttp.ClientResponse) -> None:
        body = await read_body(response, MAX_LIST_BYTES)
        if response.status == 429:
            wait_seconds = read_wait(response.headers.get("Retry-After", ""))
            raise BackendBusy(f"{self.name} limits how much it draws.", wait_seconds)
        if response.status in DOWN_STATUSES:
            raise BackendUnreachable(f"{self.name} is busy or down: it answers {response.status}.")
        if response.status in (401, 403):
            raise KeyRefused(f"{self.name} refuses the key of this worker ({response.status}).")
        blame: Blame = "worker" if response.status >= 500 else "model"
        message, field = find_error(body)
        reason = clean_line(message)
        text = f": {reason}" if reason else "."
        sentence = f"{self.name} refuses the picture ({response.status}){text}"
        raise BackendRefusal(sentence, blame, response.status, message, field)


class BackendRefusal(JobRejected):
    """The backend answered with an error. `status`: of HTTP. `message`: its own words, `field`: what they are about."""

    def __init__(self, sentence: str, blame: Blame, status: int, message: str = "", field: str = "") -> None:
        super().__init__(sentence, blame)
        self.status = status
        self.message = message
        self.field = field


async def read_body(response: aiohttp.ClientResponse, limit: int) -> bytes:
    """Return the body. Raises `JobRejected` as soon as it is longer than `limit` bytes."""
    chunks = list[bytes]()
    size = 0
    async for chunk in response.content.iter_chunked(256 * 1024):
        size += len(chunk)
        if size > limit:
            raise JobRejected("The backend's answer is too long.", "worker")
        chunks.append(chunk)
    return b"".join(chunks)


def read_wait(retry_after: str) -> float:
    """Return the seconds of a `Retry-After`, within bounds; a date or nothing means a few."""
    seconds = float(retry_after) if retry_after.isascii() and retry_after.isdigit() else USUAL_WAIT_SECONDS
    return min(MAX_WAIT_SECONDS, seconds)


def parse_json(body: bytes | str, name: str) -> Any:
    """Return the value. Raises `JobRejected`."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise JobRejected(f"{name} answers with something that is no JSON.", "worker") from error


def parse_object(body: bytes | str, name: str) -> dict[str, Any]:
    """Return an object's members; none of a value that is no object. Raises `JobRejected`."""
    return as_object(parse_json(body, name))


def as_object(value: object) -> dict[str, Any]:
    """Return a parsed object's members; none of a value that is no object."""
    return cast(dict[str, Any], value) if isinstance(value, dict) else {}


def find_error(body: bytes) -> tuple[str, str]:
    """Return the backend's own words about an error, as they are, and OpenAI's `param`; "" for what is missing."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return "", ""
    field: object = ""
    for key in ("error", "message", "detail"):
        if isinstance(value, dict) and key in value:
            field = cast(dict[str, Any], value).get("param") or field
            value = cast(dict[str, Any], value)[key]
    return value[:MAX_MESSAGE] if isinstance(value, str) else "", field if isinstance(field, str) else ""


def clean_line(text: str) -> str:
    """Return untrusted words as one line that ends like a sentence, without what could format or ping."""
    line = re.sub(r"[^\w\s.,:;()'/+-]", "", " ".join(text.split()))[:MAX_REASON].strip()
    return line if not line or line.endswith(".") else f"{line}."


def decode_base64(text: object, name: str) -> bytes:
    """Return the bytes of a base64 text, with or without a `data:` prefix. Raises `JobRejected`."""
    try:
        if not isinstance(text, str):
            raise ValueError("no text")
        return base64.b64decode(text.partition(",")[2] if text.startswith("data:") else text, validate=True)
    except (ValueError, binascii.Error) as error:
        raise JobRejected(f"{name} sent a picture that is no base64.", "worker") from error


def make_headers(key: str) -> dict[str, str]:
    """Return the header that carries a key; NAME:PASSWORD is sent as Basic (RFC 7617), anything else as Bearer."""
    if not key:
        return {}
    if ":" in key:
        return {"Authorization": f"Basic {base64.b64encode(key.encode()).decode()}"}
    return {"Authorization": f"Bearer {key}"}
