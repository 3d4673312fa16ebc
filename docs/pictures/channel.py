"""Renders `docs/discord.webp`: a channel in which the real bot and its real worker draw.

Run `PYTHONPATH=. python docs/pictures/channel.py`. The channel is in the loopback Discord. Chromium
shows its messages in a page that imitates Discord's client. Texts, pictures and buttons are what the bot posted.
"""

from __future__ import annotations

import asyncio
import base64
import html
import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from PIL import Image, ImageChops

from tools.loopback.members import Person
from tools.loopback.server import TOKEN, Loopback, wait_until

TARGET = Path(__file__).parents[1] / "discord.webp"
WIDTH = 1180
HEIGHT = 800
SCALE = 1.5
START_TIMEOUT = 120.0
JOB_TIMEOUT = 240.0
BUTTON_COLOURS = {1: "#5865f2", 2: "#4e5058", 3: "#248046", 4: "#da373c"}
STYLE = """
body { margin: 0; padding: 18px 22px; display: grid; grid-template-columns: 1fr 1fr; gap: 24px }
body { background: #313338; color: #dbdee1; font: 15px/1.35 "DejaVu Sans", sans-serif }
article { display: grid; grid-template-columns: 48px 1fr; align-content: start }
.face { width: 36px; height: 36px; border-radius: 50%; background: #b5483a; display: grid; place-items: center }
.by { grid-column: 2; color: #949ba4; font-size: 13px; margin-bottom: 3px } .by b { color: #c9cdfb; font-weight: 500 }
.name { color: #f2f3f5; font-weight: 600 } .app { background: #5865f2; color: #fff; border-radius: 3px; padding: 0 4px;
  font-size: 10px; vertical-align: 2px; margin-left: 5px }
.text { white-space: pre-wrap } code { background: #1e1f22; border-radius: 3px; padding: 1px 4px; font-size: 13px }
img { width: 380px; border-radius: 8px; margin: 6px 0; display: block }
.row { display: flex; gap: 8px; margin-top: 6px }
.row span { border-radius: 4px; padding: 6px 14px; color: #fff; font-size: 14px; font-weight: 500 }
.row .select { background: #1e1f22; color: #949ba4; width: 380px }
"""


@asynccontextmanager
async def run_darkroom(loopback: Loopback, folder: Path) -> AsyncIterator[None]:
    """Run `darkroom up` with the loopback as its Discord."""
    settings = {
        "DARKROOM_DISCORD_API": loopback.api,
        "DARKROOM_DISCORD_GATEWAY": loopback.gateway.url,
        "DISCORD_TOKEN": TOKEN,
    }
    command = [sys.executable, "-m", "bot", "up", "--port", "0", "--data", str(folder)]
    process = await asyncio.create_subprocess_exec(*command, env=os.environ | settings)
    try:
        await wait_until(
            lambda: loopback.gateway.has_all_shards() and bool(loopback.world.backend.commands), START_TIMEOUT
        )
        yield
    finally:
        process.terminate()
        await process.wait()


async def draw_channel(folder: Path) -> str:
    """Draw one job to its end and the second half of the way; return the channel as a page."""
    loopback = Loopback()
    guild = loopback.world.create_guild()
    channel = guild.create_text_channel("pictures")
    async with loopback.open(), run_darkroom(loopback, folder):
        alice, ben = (Person(loopback, name, guild, answer_timeout=JOB_TIMEOUT) for name in ("alice", "ben"))
        await wait_for_model(folder)
        # of more than a minute, the end would be another message
        first = await alice.slash(channel, "imagine", prompt="mushroom, blue background --seed 7 --steps 500")
        await wait_until(lambda: _has_file(first.message, "darkroom-"), JOB_TIMEOUT)
        second = await ben.slash(channel, "imagine", prompt="rocket --seed 4")
        await wait_until(lambda: _has_file(second.message, "developing"), JOB_TIMEOUT)
        await wait_until(lambda: _read_percent(second.message) >= 55, JOB_TIMEOUT)  # the first previews are noise
        return "".join(
            _format_message(loopback, act.message, person.user.name) for act, person in ((first, alice), (second, ben))
        )


def read_page_url(folder: Path) -> str:
    return json.loads((folder / "running.json").read_text())["url"]


async def wait_for_model(folder: Path) -> None:
    """Wait until a worker offers its model; asks seldom, since the page limits how often."""
    async with asyncio.timeout(START_TIMEOUT):
        while not await asyncio.to_thread(_is_model_ready, folder):
            await asyncio.sleep(1.0)


def _is_model_ready(folder: Path) -> bool:
    with urllib.request.urlopen(f"{read_page_url(folder)}/api/workers") as answer:  # noqa: S310 - our own page
        return bool(json.load(answer)["models"])


def _read_percent(message: Any) -> int:
    found = re.search(r"(\d+) %", message.content)
    return int(found[1]) if found else 0


def _has_file(message: Any, prefix: str) -> bool:
    return message is not None and any(each["filename"].startswith(prefix) for each in message.attachments)


def _format_message(loopback: Loopback, message: Any, member: str) -> str:
    pictures = "".join(
        f'<img src="data:image;base64,{base64.b64encode(loopback.world.read_attachment(each["url"])).decode()}">'
        for each in message.attachments
    )
    rows = "".join(
        f'<div class="row">{"".join(map(_format_component, row["components"]))}</div>' for row in message.components
    )
    return (
        f'<article><div class="by"><b>{member}</b> used <b>/imagine</b></div><div class="face">◉</div><div>'
        f'<div><span class="name">Darkroom</span><span class="app">APP</span></div>'
        f'<div class="text">{_format_text(message.content)}</div>{pictures}{rows}</div></article>'
    )


def _format_component(component: dict[str, Any]) -> str:
    if component["type"] != 2:
        return f'<span class="select">{html.escape(component.get("placeholder") or "")}</span>'
    emoji = (component.get("emoji") or {}).get("name") or ""
    label = html.escape(f"{emoji} {component.get('label') or ''}".strip())
    return f'<span style="background:{BUTTON_COLOURS.get(component["style"], "#4e5058")}">{label}</span>'


def _format_text(content: str) -> str:
    """Return the text with the few marks of Discord's markdown that the bot uses."""
    text = html.escape(re.sub(r"<t:(\d+):R>", _format_moment, content))
    text = re.sub(r"\\([*_~`|>#\[\]()-])", r"\1", text)
    text = re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", text)
    text = re.sub(r"`(.+?)`", r"<code>\1</code>", text)
    return re.sub(r"^-# (.*)$", r"<small>\1</small>", text, flags=re.MULTILINE)


def _format_moment(mark: re.Match[str]) -> str:
    """Return a moment as Discord's client shows it."""
    return f"in {max(1, round(int(mark[1]) - time.time()))} seconds"


def take_screenshot(page: str, folder: Path) -> Image.Image:
    source = folder / "page.html"
    shot = folder / "shot.png"
    source.write_text(f"<!doctype html><meta charset=utf-8><style>{STYLE}</style>{page}")
    options = ["--headless", "--no-sandbox", "--hide-scrollbars", f"--window-size={WIDTH},{HEIGHT}"]
    options += [f"--force-device-scale-factor={SCALE}", f"--screenshot={shot}"]
    subprocess.run(["chromium", *options, source.as_uri()], check=True, capture_output=True)
    picture = Image.open(shot).convert("RGB")
    background = Image.new("RGB", picture.size, picture.getpixel((0, 0)))
    box = ImageChops.difference(picture, background).getbbox() or (0, 0, *picture.size)
    return picture.crop((0, 0, min(picture.width, box[2] + 40), min(picture.height, box[3] + 36)))


def main() -> None:
    with TemporaryDirectory() as folder:
        page = asyncio.run(draw_channel(Path(folder) / "bot"))
        take_screenshot(page, Path(folder)).save(TARGET, "WEBP", quality=82, method=6)


if __name__ == "__main__":
    main()
