"""Renders the films of `docs/steering.md` and `docs/parties.md`: a fox becomes a terrier, and a party of five.

Run `PYTHONPATH=.:tests python docs/pictures/steered_films.py`. The real bot and its real worker draw, the first picture
for the page, the second in the loopback Discord. The films are those that the bot offers.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import aiohttp
from channel import JOB_TIMEOUT, read_page_url, run_darkroom, wait_for_model

from benchmarks.steering.steered_jobs import open_page
from bot.web.auth import terminal_key
from tools.loopback.members import Person
from tools.loopback.server import Loopback, wait_until

HERE = Path(__file__).parent
SEED = 7
PICTURE = {"prompt": "fox, cute, white background", "steps": 250, "seed": SEED, "count": 4}
SECOND = "terrier, cute, white background"
SHARE = 0.4
PARTY_PROMPT = f"cat, cute --seed {SEED}"
PARTY_MINUTES = 1
SAID = {"ben": "dog", "cleo": "smiling", "dan": "blue background", "eve": "3d render"}
SAY_PAUSE_SECONDS = 6.0


async def draw_steered_film(folder: Path) -> bytes:
    """Draw a grid whose words change after `SHARE` of its steps; return its film."""
    headers = {"Authorization": f"Bearer {terminal_key(folder)}"}
    async with aiohttp.ClientSession(read_page_url(folder), headers=headers) as client, open_page(client) as reader:
        async with client.post("/api/jobs", json=PICTURE) as answer:
            answer.raise_for_status()
            job = (await answer.json())["id"]
        await reader.wait_until(lambda: reader.latest_step(job) >= SHARE * PICTURE["steps"], JOB_TIMEOUT)
        async with client.post(f"/api/jobs/{job}/amend", json={"prompt": SECOND}) as answer:
            answer.raise_for_status()
        await reader.wait_until(lambda: job in reader.ended, JOB_TIMEOUT)
        async with client.get(f"/api/jobs/{job}/film.webp") as answer:
            answer.raise_for_status()
            return await answer.read()


async def draw_party_film(loopback: Loopback, guild: Any) -> bytes:
    """Hold a party of five; return the film of its last message."""
    channel = guild.create_text_channel("party")
    owner = Person(loopback, "alice", guild, answer_timeout=JOB_TIMEOUT)
    act = await owner.slash(channel, "party", prompt=PARTY_PROMPT, minutes=PARTY_MINUTES)
    await act.wait_for_message()
    for name, words in SAID.items():
        await asyncio.sleep(SAY_PAUSE_SECONDS)
        await (await Person(loopback, name, guild).slash(channel, "say", words=words)).wait_for_message()
    (film,) = await wait_until(lambda: _find_films(loopback, channel), JOB_TIMEOUT)
    return loopback.world.read_attachment(film["url"])


def _find_films(loopback: Loopback, channel: Any) -> list[dict[str, Any]]:
    messages = loopback.world.list_messages(channel.id)
    attachments = (each for message in messages for each in message.attachments)
    return [each for each in attachments if each["filename"].endswith("film.webp")]


async def draw_films(folder: Path) -> dict[str, bytes]:
    loopback = Loopback()
    guild = loopback.world.create_guild()
    async with loopback.open(), run_darkroom(loopback, folder):
        await wait_for_model(folder)
        return {"steer-film": await draw_steered_film(folder), "party-film": await draw_party_film(loopback, guild)}


def main() -> None:
    with TemporaryDirectory() as folder:
        for name, film in asyncio.run(draw_films(Path(folder) / "bot")).items():
            (HERE / f"{name}.webp").write_bytes(film)


if __name__ == "__main__":
    main()
