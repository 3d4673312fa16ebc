"""The server: what `huggingface_hub` asks of the hub, with its headers, redirects, ranges and error codes.

`/api/models`, `/api/models/ID[/revision/REV]`, `/api/models/ID/tree/REV`, `/ID/resolve/REV/FILE`, `/cdn/SHA256`.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any
from urllib.parse import unquote

from aiohttp import web

from tools.model_hub.repositories import Faults, HubRepository, describe_file, digest, is_lfs

CHUNK_BYTES = 16_384
TOKEN = "Bearer accepted"


class ModelHub:
    """Repositories by hub id. `requests`: every request as method and path, with its range."""

    def __init__(self, repositories: dict[str, HubRepository]) -> None:
        self.repositories = repositories
        self.faults = Faults()
        self.requests: list[str] = []
        self.sent_bytes = 0
        self.url = ""

    @contextmanager
    def open(self, port: int = 0) -> Generator[ModelHub]:
        """Serve in a thread, at `url`."""
        loop = asyncio.new_event_loop()
        started = threading.Event()
        stop = asyncio.Event()

        async def serve() -> None:
            app = web.Application()
            app.router.add_route("*", "/{path:.*}", self._answer)
            runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=0.1)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", port)
            await site.start()
            self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            started.set()
            await stop.wait()
            await runner.cleanup()

        thread = threading.Thread(target=lambda: (loop.run_until_complete(serve()), loop.close()), daemon=True)
        thread.start()
        assert started.wait(10)
        try:
            yield self
        finally:
            loop.call_soon_threadsafe(stop.set)
            thread.join(10)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(f"{request.method} {request.path} {request.headers.get('Range', '')}".strip())
        if self.faults.status:
            return web.Response(status=self.faults.status)
        path = unquote(request.path).strip("/")
        if path == "api/models":
            return self._search(request)
        if path.startswith("cdn/"):
            return await self._send(request, *self._find_blob(path.removeprefix("cdn/")))
        if path.startswith("api/models/"):
            return self._describe(request, path.removeprefix("api/models/"))
        return await self._resolve(request, path)

    def _search(self, request: web.Request) -> web.Response:
        word = request.query.get("search", "").casefold()
        return web.json_response([{"id": name} for name in self.repositories if word in name.casefold()])

    def _describe(self, request: web.Request, path: str) -> web.Response:
        hub_id, _, rest = path.partition("/revision/")
        hub_id, _, tree_revision = hub_id.partition("/tree/")
        repository = self.repositories.get(hub_id)
        if repository is None:
            return _refuse(404 if "Authorization" in request.headers else 401, "RepoNotFound")
        commit = repository.find_commit(rest or tree_revision or "main")
        if commit is None:
            return _refuse(404, "RevisionNotFound")
        files = [describe_file(*item) for item in repository.revisions[commit].items()]
        if tree_revision:
            return web.json_response([_to_tree_entry(each) for each in files])
        gated = "auto" if repository.gate else False
        return web.json_response(
            {"id": hub_id, "sha": commit, "cardData": repository.card, "gated": gated, "siblings": files, "tags": []}
        )

    async def _resolve(self, request: web.Request, path: str) -> web.StreamResponse:
        hub_id, _, rest = path.partition("/resolve/")
        revision, _, file_path = rest.partition("/")
        repository = self.repositories.get(hub_id)
        if repository is None:
            return _refuse(401, "RepoNotFound")
        if repository.gate and request.headers.get("Authorization") != TOKEN:
            return _refuse(repository.gate, "GatedRepo")
        if (commit := repository.find_commit(revision)) is None:
            return _refuse(404, "RevisionNotFound")
        if (content := repository.revisions[commit].get(file_path)) is None:
            return _refuse(404, "EntryNotFound")
        headers = {"X-Repo-Commit": commit, "ETag": f'"{digest(content)[:40]}"'}
        if not is_lfs(file_path):
            return await self._send(request, file_path, content, headers)
        linked = {"X-Linked-Etag": f'"{digest(content)}"', "X-Linked-Size": str(len(content))}
        location = {"Location": f"{self.url}/cdn/{digest(content)}"}
        return web.Response(status=302, headers=headers | linked | location)

    def _find_blob(self, sha256: str) -> tuple[str, bytes]:
        files = (files for each in self.repositories.values() for files in each.revisions.values())
        return next(item for each in files for item in each.items() if digest(item[1]) == sha256)

    async def _send(
        self, request: web.Request, path: str, content: bytes, headers: dict[str, str] | None = None
    ) -> web.StreamResponse:
        start = 0
        status = 200
        if (asked := request.headers.get("Range", "")).startswith("bytes="):
            start = int(asked.removeprefix("bytes=").partition("-")[0])
            status = 206
        body = self._corrupt(path, content)[start:] + self.faults.padding
        range_headers = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if status == 206 else {}
        response = web.StreamResponse(status=status, headers={**(headers or {}), **range_headers})
        response.content_length = len(body)
        await response.prepare(request)
        if request.method == "GET":
            await self._write_body(request, response, body)
        return response

    async def _write_body(self, request: web.Request, response: web.StreamResponse, body: bytes) -> None:
        cut = self.faults.cut_after.pop(0) if self.faults.cut_after and len(body) > self.faults.cut_after[0] else None
        for offset in range(0, len(body), CHUNK_BYTES):
            chunk = body[offset : offset + CHUNK_BYTES]
            if cut is not None and offset + len(chunk) > cut:
                assert request.transport is not None
                request.transport.close()
                return
            await response.write(chunk)
            self.sent_bytes += len(chunk)
            if self.faults.bytes_a_second:
                await asyncio.sleep(len(chunk) / self.faults.bytes_a_second)

    def _corrupt(self, path: str, content: bytes) -> bytes:
        if self.faults.corrupt.get(path, 0) <= 0:
            return content
        self.faults.corrupt[path] -= 1
        return bytes([content[0] ^ 255]) + content[1:]


def _to_tree_entry(file: dict[str, Any]) -> dict[str, Any]:
    lfs = file.get("lfs")
    entry = {"type": "file", "path": file["rfilename"], "size": file["size"], "oid": file["blobId"]}
    return entry | ({"lfs": {"oid": lfs["sha256"], "size": lfs["size"], "pointerSize": 134}} if lfs else {})


def _refuse(status: int, code: str) -> web.Response:
    return web.Response(status=status, headers={"X-Error-Code": code, "X-Error-Message": code})
