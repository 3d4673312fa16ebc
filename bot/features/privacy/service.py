"""Data export for a member: a zip of `jobs.json` and their pictures, without data of others.

It leaves out pictures that the picture check or a moderator holds.
"""

from __future__ import annotations

import asyncio
import io
import time
import zipfile
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any

import msgspec

from bot.domain.errors import UserError
from bot.domain.feature import RunningFeature
from bot.pictures.moderation_status import is_held
from bot.pictures.picture_store import ContentMissing, PictureStore
from bot.store import JobRecord, Store, StoredPicture
from bot.store.members import preferences

if TYPE_CHECKING:
    from bot.app.wiring import App

ZIP_OVERHEAD = 512  # bytes that a zip needs for a file beyond its content
JOBS_FILE = "jobs.json"
JOB_FIELDS = """
    id action state prompt notes member_name guild channel private tier model created started ended cost charged reason
"""


@dataclass
class ExportContents:
    """The contents of a member's export. `pictures`: name in the zip → SHA-256 and size."""

    document: dict[str, Any]
    pictures: dict[str, tuple[str, int]] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """The approximate size of the pictures in a zip."""
        return sum(size + ZIP_OVERHEAD for _, size in self.pictures.values())


@dataclass(frozen=True)
class ExportArchive:
    """A zip in memory; `omitted_pictures`: how many pictures had no room in it."""

    content: bytes
    job_count: int
    picture_count: int
    omitted_pictures: int


class DataExport:
    """Builds exports, for the bot and for the command line."""

    def __init__(self, store: Store, picture_store: PictureStore, *, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._picture_store = picture_store
        self._clock = clock
        self._archive_lock = asyncio.Lock()

    async def build_archive(self, member: str, limit: int) -> ExportArchive:
        """Return everything if it fits into `limit` bytes, else only `jobs.json`, else raise `UserError` (413)."""
        async with self._archive_lock:  # one at a time: the zip is in memory
            contents = await self.collect_contents(member)
            encoded_jobs = await asyncio.to_thread(_encode_json, contents.document)
            has_room = len(encoded_jobs) + ZIP_OVERHEAD + contents.size <= limit
            buffer = io.BytesIO()
            picture_total = await self.write_zip(contents, buffer, pictures=has_room)
            if len(buffer.getbuffer()) > limit:
                sentence = "Even the list of your jobs is too large to be sent here. Ask this bot's operator."
                raise UserError(sentence, 413)
            omitted_pictures = 0 if has_room else len(contents.pictures)
            return ExportArchive(buffer.getvalue(), len(contents.document["jobs"]), picture_total, omitted_pictures)

    async def collect_contents(self, member: str) -> ExportContents:
        """Collect everything that is stored about a member, and the list of their pictures."""
        settings = await self._store.query(preferences.read_choices, member)
        document: dict[str, Any] = {
            "member": member,
            "made": self._clock(),
            "times": "seconds since 1970; costs in device-seconds",
            "preferences": settings.preferences,
            "favourites": [{"job": job, "image": image + 1, "at": at} for job, image, at in settings.favourites],
            "reports": [{"job": job, "at": at, "said": report_text} for job, at, report_text in settings.reports],
            "amendments": [{"job": job, "at": at, "said": text} for job, at, text in settings.amendments],
            **settings.added,
            "jobs": [],
        }
        contents = ExportContents(document)
        async for record, stored_files, destinations in self._read_jobs(member):
            files = _exported_pictures(record, stored_files)
            contents.pictures |= files
            document["jobs"].append(_job_entry(record, list(files), destinations))
        own_ids = {entry["id"] for entry in document["jobs"]}
        for entry in document["jobs"]:
            entry["parent"] = entry["parent"] if entry["parent"] in own_ids else None
        return contents

    async def _read_jobs(self, member: str) -> AsyncIterator[tuple[JobRecord, list[StoredPicture], list[Any]]]:
        last_id = ""
        while True:
            records, stored_files, destinations = await self._store.query(preferences.read_page, member, last_id)
            for record in records:
                yield record, [file for file in stored_files if file.job == record.id], destinations.get(record.id, [])
            if not records:
                return
            last_id = records[-1].id

    async def write_zip(self, contents: ExportContents, out: IO[bytes], *, pictures: bool = True) -> int:
        """Write the zip, picture by picture; return how many it contains. `jobs.json` lists the missing ones."""
        missing: list[str] = []
        with zipfile.ZipFile(out, "w") as archive:
            for name, (sha256, _) in contents.pictures.items() if pictures else ():
                try:
                    await asyncio.to_thread(archive.writestr, name, await self._picture_store.get(sha256))
                except ContentMissing:
                    missing.append(name)
            document = {**contents.document, "missing": missing} if missing else contents.document
            encoded_jobs = await asyncio.to_thread(_encode_json, document)
            await asyncio.to_thread(archive.writestr, JOBS_FILE, encoded_jobs, zipfile.ZIP_DEFLATED)
        return len(contents.pictures) - len(missing) if pictures else 0


def _exported_pictures(record: JobRecord, stored_files: Sequence[StoredPicture]) -> dict[str, tuple[str, int]]:
    """Return the pictures of a job that may be shown, by their names in the zip."""
    visible_files = [file for file in stored_files if file.kind == "image" and not is_held(record.check, file)]
    return {f"pictures/{record.id}-{file.image + 1}.png": (file.sha256, file.bytes) for file in visible_files}


def _job_entry(record: JobRecord, files: Sequence[str], destinations: Sequence[Any]) -> dict[str, Any]:
    return {
        **{name: getattr(record, name) for name in JOB_FIELDS.split()},
        "settings": msgspec.to_builtins(record.task),
        "parent": record.parent[0] if record.parent else None,
        "places": destinations,
        "pictures": files,
    }


def _encode_json(document: Mapping[str, Any]) -> bytes:
    return msgspec.json.format(msgspec.json.encode(document), indent=1)


@asynccontextmanager
async def open_service(app: App) -> AsyncGenerator[RunningFeature]:
    """Open the exports over the store and the picture store."""
    yield RunningFeature(DataExport(app.store, app.picture_store, clock=app.core.clock))
