"""Draws a picture with OpenAI's library and saves each partial picture as it comes.

Needs a running `darkroom up` and `pip install openai`. `DARKROOM_URL` names another one than http://127.0.0.1:8189,
`DARKROOM_API_KEY` the key for it; a chatroom for this computer alone needs none.
"""

from __future__ import annotations

import argparse
import base64
import os
import sys
from pathlib import Path

from openai import APIError, OpenAI


def draw(prompt: str, folder: Path) -> Path:
    """Draw one picture of the prompt; return the file of the finished one."""
    url = os.environ.get("DARKROOM_URL", "http://127.0.0.1:8189")
    with OpenAI(base_url=f"{url}/v1", api_key=os.environ.get("DARKROOM_API_KEY", "none")) as client:
        for event in client.images.generate(prompt=prompt, stream=True, partial_images=3):
            content = base64.b64decode(event.b64_json)
            if event.type == "image_generation.completed":
                path = folder / f"picture.{event.output_format}"
                path.write_bytes(content)
                return path
            path = folder / f"partial-{event.partial_image_index + 1}.{event.output_format}"
            path.write_bytes(content)
            print(path, file=sys.stderr)
    sys.exit("openai_stream: the stream ended without a picture")


def main() -> None:
    parser = argparse.ArgumentParser(description="Draws a picture by OpenAI's API.")
    parser.add_argument("prompt", nargs="?", default="a lighthouse at dusk")
    parser.add_argument("--out", type=Path, default=Path())
    options = parser.parse_args()
    try:
        print(draw(options.prompt, options.out))
    except APIError as error:
        sys.exit(f"openai_stream: {error}")


if __name__ == "__main__":
    main()
