"""Draws a picture over the HTTP API with the standard library: asks, follows the job's event stream, saves the picture.

`DARKROOM_URL` is the address, `DARKROOM_API_KEY` a key; an open chatroom needs none.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from http.client import HTTPResponse
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

URL = os.environ.get("DARKROOM_URL", "http://127.0.0.1:8189")
ENDS = ("finished", "failed", "cancelled", "deleted")


def ask(path: str, body: object = None) -> HTTPResponse:
    """Send a request: a POST with JSON if there is a body."""
    key = os.environ.get("DARKROOM_API_KEY", "")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    data = None if body is None else json.dumps(body).encode()
    return urlopen(Request(URL + path, data, {**headers, "Content-Type": "application/json"}))  # noqa: S310 - our own


def read_events(path: str) -> Iterator[tuple[str, Any]]:
    """Yield the events of a stream, as names and values."""
    name = ""
    with ask(path) as answer:
        for line in answer:
            field, _, value = line.decode().strip().partition(": ")
            if field == "event":
                name = value
            elif field == "data":
                yield name, json.loads(value)


def main() -> None:
    prompt = " ".join(sys.argv[1:]) or "a lighthouse at dusk"
    job = json.load(ask("/api/jobs", {"prompt": prompt, "count": 1}))["id"]
    name = ""
    value = dict[str, Any]()
    for name, value in read_events(f"/api/jobs/{job}/events"):
        if name == "frame":  # `frames` has previews, JPEG as base64
            print(f"{value['percent']} % drawn", file=sys.stderr)
        if name in ENDS:
            break
    if name != "finished":
        sys.exit(f"draw: {value['reason'] or name}")
    path = Path(f"{job}-1.png")
    path.write_bytes(ask(value["pictures"][0]["url"]).read())
    print(path)


if __name__ == "__main__":
    main()
