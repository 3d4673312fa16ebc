"""Draws a picture as an assistant does: starts `darkroom mcp`, calls `imagine`, prints its progress, saves the picture.

Needs a running `darkroom up` and `pip install 'darkroom-bot[mcp]'`. With an address (`http://127.0.0.1:8190/mcp`) it
asks that server in place of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import os
import sys
from contextlib import AsyncExitStack
from pathlib import Path

from httpx2 import AsyncClient
from mcp import Client, StdioServerParameters
from mcp.client.streamable_http import streamable_http_client
from mcp_types import BlobResourceContents


async def draw(prompt: str, address: str, folder: Path) -> list[Path]:
    """Draw one picture of the prompt; return the files written."""
    async with AsyncExitStack() as stack:
        if address:
            key = os.environ.get("DARKROOM_API_KEY", "")
            headers = {"Authorization": f"Bearer {key}"} if key else {}
            http_client = await stack.enter_async_context(AsyncClient(headers=headers, timeout=600))
            client = Client(streamable_http_client(address, http_client=http_client))
        else:
            command = [sys.executable, "-m", "bot", "mcp"]  # what `darkroom mcp` runs
            client = Client(StdioServerParameters(command=command[0], args=command[1:], env=dict(os.environ)))
        await stack.enter_async_context(client)
        result = await client.call_tool("imagine", {"prompt": prompt, "count": 1}, progress_callback=print_progress)
        if result.is_error:
            sys.exit(f"mcp_client: {result.content[0]}")
        pictures = [picture for job in result.structured_content["jobs"] for picture in job["pictures"]]
        return [await save_picture(client, picture["uri"], folder) for picture in pictures]


async def print_progress(progress: float, total: float | None, message: str | None) -> None:
    print(f"{progress:5.1f} %  {message}", file=sys.stderr)


async def save_picture(client: Client, uri: str, folder: Path) -> Path:
    """Read a finished picture, which is a resource, and write it."""
    (contents,) = (await client.read_resource(uri)).contents
    assert isinstance(contents, BlobResourceContents)
    path = folder / (uri.removeprefix("darkroom://jobs/").replace("/pictures/", "-") + ".png")
    path.write_bytes(base64.b64decode(contents.blob))
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description="Draws a picture by MCP.")
    parser.add_argument("prompt", nargs="?", default="a lighthouse at dusk")
    parser.add_argument("--address", default="", help="of a server that runs, as http://127.0.0.1:8190/mcp")
    parser.add_argument("--out", type=Path, default=Path())
    options = parser.parse_args()
    for path in asyncio.run(draw(options.prompt, options.address, options.out)):
        print(path)


if __name__ == "__main__":
    main()
