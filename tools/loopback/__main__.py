"""A Discord in the terminal: `python -m tools.loopback --port 9000` prints the environment for a bot.

Each typed line becomes `/imagine` by Alice. Every change of a message is printed. Knows nothing of Darkroom.
"""

from __future__ import annotations

import argparse
import asyncio
import sys

from tools.loopback.members import Person
from tools.loopback.server import TOKEN, Loopback


async def main(port: int) -> None:
    loopback = Loopback()
    guild = loopback.world.create_guild("Loopback")
    channel = guild.create_text_channel("pictures")
    alice = Person(loopback, "alice", guild)
    async with loopback.open(port):
        print(
            f"export DARKROOM_DISCORD_API={loopback.api} DARKROOM_DISCORD_GATEWAY={loopback.gateway.url} "
            f"DISCORD_TOKEN={TOKEN}"
        )
        watcher = asyncio.create_task(print_changes(loopback, channel.id))
        while line := await asyncio.to_thread(sys.stdin.readline):
            try:
                await alice.slash(channel, "imagine", prompt=line.strip())
            except Exception as error:  # simcord says what a real member could not do
                print(f"! {error}")
        watcher.cancel()


async def print_changes(loopback: Loopback, channel: int) -> None:
    """Print each message when it appears or changes."""
    printed_texts: dict[int, str] = {}
    while True:
        for message in loopback.world.list_messages(channel):
            files = " ".join(
                each["url"].replace("https://cdn.simcord.invalid", loopback.root) for each in message.attachments
            )
            text = f"[{message.id}] {message.content} {files}"
            if printed_texts.get(message.id) != text:
                print(text)
            printed_texts[message.id] = text
        await asyncio.sleep(0.2)


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(prog="loopback", description=__doc__)
    arguments.add_argument("--port", type=int, default=0, help="where to listen (a free port)")
    asyncio.run(main(arguments.parse_args().port))
