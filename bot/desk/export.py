"""Data export for a member: a zip of `jobs.json` and their pictures, without data of others.

Pictures that the picture check or a moderator holds are left out.
"""

from __future__ import annotations

import asyncio
import io
import time
import zipfile
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, Any

import msgspec

from bot.images.held import is_held
from bot.images.pictures import Missing, Pictures
from bot.refused import Refused
from bot.store import Record, Store, Stored, export

OVERHEAD = 512  # bytes that a zip needs for a file beyond its content
LEDGER = "jobs.json"


@dataclass
class Contents:
    """The contents of a member's export. `pictures`: name in the zip → SHA-256 and size."""

    told: dict[str, Any]
    pictures: dict[str, tuple[str, int]] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """The approximate size of the pictures in a zip."""
        return sum(size + OVERHEAD for _, size in self.pictures.values())


@dataclass(frozen=True)
class Parcel:
    """A zip in memory; `left`: how many pictures had no room in it."""

    content: bytes
    jobs: int
    pictures: int
    left: int


class Export:
    """Builds exports, for the bot and for the command line."""

    def __init__(self, store: Store, pictures: Pictures, *, clock: Callable[[], float] = time.time) -> None:
        self._store, self._pictures, self._clock = store, pictures, clock
        self._turn = asyncio.Lock()

    async def parcel(self, member: str, limit: int) -> Parcel:
        """Return everything if it fits into `limit` bytes, else only `jobs.json`. Raises `Refused` (413) if even that
        does not.
        """
        async with self._turn:  # one at a time: the zip is in memory
            contents = await self.contents(member)
            words = await asyncio.to_thread(_ledger, contents.told)
            fits = len(words) + OVERHEAD + contents.size <= limit
            out = io.BytesIO()
            kept = await self.write(contents, out, pictures=fits)
            if len(out.getbuffer()) > limit:
                raise Refused("Even the list of your jobs is too large to be sent here. Ask this bot's operator.", 413)
            left = 0 if fits else len(contents.pictures)
            return Parcel(out.getvalue(), len(contents.told["jobs"]), kept, left)

    async def contents(self, member: str) -> Contents:
        """Collect everything that is stored about a member, and the list of their pictures."""
        chosen = await self._store.ask(export.chosen, member)
        told: dict[str, Any] = {
            "member": member,
            "made": self._clock(),
            "times": "seconds since 1970; costs in device-seconds",
            "preferences": chosen.preferences,
            "options": chosen.options,
            "favourites": [{"job": job, "image": image + 1, "at": at} for job, image, at in chosen.favourites],
            "reports": [{"job": job, "at": at, "said": said} for job, at, said in chosen.reports],
            "jobs": [],
        }
        contents = Contents(told)
        async for record, kept, shown in self._jobs(member):
            files = _files(record, kept)
            contents.pictures |= files
            told["jobs"].append(_told(record, list(files), shown))
        mine = {one["id"] for one in told["jobs"]}
        for one in told["jobs"]:
            one["parent"] = one["parent"] if one["parent"] in mine else None
        return contents

    async def _jobs(self, member: str) -> AsyncIterator[tuple[Record, list[Stored], list[Any]]]:
        after = ""
        while True:
            found, kept, shown = await self._store.ask(export.page, member, after)
            for record in found:
                yield record, [one for one in kept if one.job == record.id], shown.get(record.id, [])
            if not found:
                return
            after = found[-1].id

    async def write(self, contents: Contents, out: IO[bytes], *, pictures: bool = True) -> int:
        """Write the zip, picture by picture; return how many it contains. `jobs.json` lists the missing ones."""
        missing: list[str] = []
        with zipfile.ZipFile(out, "w") as packed:
            for name, (sha256, _) in contents.pictures.items() if pictures else ():
                try:
                    await asyncio.to_thread(packed.writestr, name, await self._pictures.get(sha256))
                except Missing:
                    missing.append(name)
            told = {**contents.told, "missing": missing} if missing else contents.told
            words = await asyncio.to_thread(_ledger, told)
            await asyncio.to_thread(packed.writestr, LEDGER, words, zipfile.ZIP_DEFLATED)
        return len(contents.pictures) - len(missing) if pictures else 0


def _files(record: Record, kept: Sequence[Stored]) -> dict[str, tuple[str, int]]:
    """Return the pictures of a job that may be shown, by their names in the zip."""
    free = [one for one in kept if one.kind == "image" and not is_held(record.check, one)]
    return {f"pictures/{record.id}-{one.image + 1}.png": (one.sha256, one.bytes) for one in free}


def _told(record: Record, files: Sequence[str], shown: Sequence[Any]) -> dict[str, Any]:
    """Return a job as its author may know it."""
    names = (
        "id", "action", "state", "prompt", "notes", "member_name", "guild", "channel", "private", "tier", "model",
        "created", "started", "ended", "cost", "charged", "reason",
    )  # fmt: skip
    told: dict[str, Any] = {name: getattr(record, name) for name in names}
    settings: Mapping[str, Any] = msgspec.to_builtins(record.task)
    return told | {
        "settings": settings,
        "parent": record.parent[0] if record.parent else None,
        "places": shown,
        "pictures": files,
    }


def _ledger(told: Mapping[str, Any]) -> bytes:
    return msgspec.json.format(msgspec.json.encode(told), indent=1)
