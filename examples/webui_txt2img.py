"""Draws a picture by AUTOMATIC1111's API, with the package `webuiapi` that programs use for it, and saves it.

Needs a running `darkroom up` and `pip install webuiapi`. `DARKROOM_URL` is the address, `DARKROOM_API_KEY` a key; an
open chatroom needs none.
"""

from __future__ import annotations

import base64
import os
import sys
import threading
from pathlib import Path
from urllib.parse import urlsplit

import webuiapi

URL = os.environ.get("DARKROOM_URL", "http://127.0.0.1:8189")
POLL_SECONDS = 0.5


def connect() -> webuiapi.WebUIApi:
    """Return a client. AUTOMATIC1111's clients send a name and a password: the key is the password."""
    address = urlsplit(URL)
    key = os.environ.get("DARKROOM_API_KEY", "")
    is_https = address.scheme == "https"
    return webuiapi.WebUIApi(
        host=address.hostname or "127.0.0.1",
        port=address.port or (443 if is_https else 80),
        use_https=is_https,
        username="darkroom" if key else None,
        password=key or None,
    )


def follow(api: webuiapi.WebUIApi, is_over: threading.Event) -> None:
    """Say how far it is, and save the newest preview."""
    while not is_over.wait(POLL_SECONDS):
        state = api.get_progress()
        if state["state"]["job_count"]:
            print(f"{state['progress']:.0%} drawn, {state['eta_relative']:.0f} s left", file=sys.stderr)
        if state["current_image"]:
            Path("webui-preview.jpg").write_bytes(base64.b64decode(state["current_image"]))


def main() -> None:
    prompt = " ".join(sys.argv[1:]) or "a lighthouse at dusk"
    api = connect()
    is_over = threading.Event()
    sampler = api.get_samplers()[0]["name"]  # the usual one of the model
    follower = threading.Thread(target=follow, args=(api, is_over))
    follower.start()
    try:
        result = api.txt2img(prompt=prompt, steps=20, cfg_scale=4, sampler_name=sampler)
    finally:
        is_over.set()
        follower.join()
        api.session.close()
    path = Path(f"webui-{result.info['seed']}.png")
    result.image.save(path)
    print(path)


if __name__ == "__main__":
    main()
