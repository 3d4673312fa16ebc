"""Loads what a job begins with: uploaded init images, masks, finished pictures, ladders.

Files are decoded, stored by content, and noted in the transaction that writes the job, like its pictures: so they are
deleted with it.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager

from bot.desk.bringing import Bring, Finished, Piece, Remote
from bot.desk.origin import Origin, check_count, origin
from bot.desk.reach import reason
from bot.desk.register import Register
from bot.images.gallery import Gallery
from bot.images.held import is_held, why
from bot.images.intake import Brought, Intake
from bot.images.links import Fetch, Gone
from bot.images.pictures import Pictures
from bot.images.tray import Tray
from bot.lines import Lines
from bot.refused import Refused
from bot.sentences import GONE
from bot.store import Record, Store, Unavailable, deleting, reads, reviews
from bot.views import Material, Member
from engine.job import sources

log = logging.getLogger(__name__)

OF_A_PICTURE = ("edit", "zoom", "pan", "branch")  # begin with the parent's picture; others with what the parent did
HELD = 403


class Starting:
    """Fetches, decodes and stores init images."""

    def __init__(
        self, store: Store, pictures: Pictures, gallery: Gallery, register: Register, intake: Intake, fetch: Fetch
    ) -> None:
        self._store, self._pictures, self._gallery, self._register = store, pictures, gallery, register
        self._intake, self._fetch = intake, fetch
        self._lines, self._tray = Lines(), Tray()

    def turn(self, member: Member) -> AbstractAsyncContextManager[None]:
        """Serialise a member's slow work. Raises `Refused` if too many of their requests wait."""
        return self._lines.turn(member.id)

    @asynccontextmanager
    async def opened(self, member: Member, bring: Bring) -> AsyncIterator[Origin]:
        """Fetch and decode a member's init images, in their turn; memory is reserved while the body runs.

        Raises `Refused`, also for a finished picture that is held or that the member may not use.
        """
        check_count(len(bring.pictures))
        async with self.turn(member), self._tray.room(bring.room):
            pictures = [await self._read(member, piece) for piece in bring.pictures]
            shape, mask = (pictures[0].width, pictures[0].height), bring.mask
            painted = None if mask is None else await self._intake.read_mask(await self._sent(mask), shape=shape)
            yield origin(pictures, painted, bring.weights)

    async def picture(self, member: Member, piece: bytes | Remote) -> Brought:
        """Fetch and decode an image that is no init image, in its member's turn. Raises `Refused`."""
        async with self.turn(member), self._tray.room(Bring((piece,)).room):
            return await self._intake.read(await self._sent(piece))

    async def _read(self, member: Member, piece: Piece) -> Brought | Material:
        if not isinstance(piece, Finished):
            return await self._intake.read(await self._sent(piece))
        if said := reason("vary", member, await self._register.record(piece.job)):
            raise Refused(said, 403)
        one = await self._gallery.stored(piece.job, piece.index)
        return Material("input", one.sha256, one.bytes, one.width, one.height)

    async def _sent(self, piece: bytes | Remote) -> bytes:
        if isinstance(piece, bytes):
            return piece
        try:
            return await self._fetch(piece.url, piece.size)
        except Gone as gone:
            raise Refused(piece.lost, 404) from gone

    async def ladder(self, job: str, index: int) -> Material:
        """Return the ladder of a finished image that may be shown. Raises `Refused` if it has none."""
        one = await self._gallery.ladder(job, index)
        return Material("branch", one.sha256, one.bytes, one.width, one.height)

    async def of(self, record: Record) -> tuple[Material, ...]:
        """Return what a job began with, for another job that begins with the same.

        Raises `Refused` if that was deleted with the job it came from (404), or is held for review (403).
        """
        kept = await self._store.ask(reads.stored, [record.id])
        material = tuple(
            Material(kind, one.sha256, one.bytes, one.width, one.height)
            for kind in ("input", "mask", "branch") for one in kept if one.kind == kind
        )  # fmt: skip
        if not {one.sha256 for one in material}.issuperset(sources(record.task)):
            raise Refused(GONE, 404)
        if material:
            await self._check_shown(record)
        return material

    async def _check_shown(self, record: Record) -> None:
        """Raise `Refused` if a picture that the job begins with is held: one with the same content, or the parent's
        picture of the nearest ancestor with an `OF_A_PICTURE` action.

        A picture that was removed by age is no obstacle: jobs made from it stay usable.
        """
        for check, one in await self._store.ask(reviews.same, sources(record.task)):
            if is_held(check, one):
                raise Refused(why(one.image, one), 403)
        while record.parent is not None and record.action not in OF_A_PICTURE:
            above = await self._store.record(record.parent[0])
            if above is None:
                return
            record = above
        if record.parent is None:
            return
        try:
            await self._gallery.stored(*record.parent)
        except Refused as refused:
            if refused.status == HELD:
                raise

    @asynccontextmanager
    async def kept(
        self, material: Sequence[Material], contents: dict[str, bytes] | None = None
    ) -> AsyncIterator[None]:  # fmt: skip
        """Keep what jobs begin with in storage while they are written, in turn with tasks that remove pictures.

        At the end it removes what no job has noted, since the job was refused. Raises `Refused`.
        """
        names = sorted({one.sha256 for one in material})
        async with AsyncExitStack() as turns:
            for name in names:
                await turns.enter_async_context(self._pictures.turn(name))
            try:
                for name in names:
                    await self._keep(name, (contents or {}).get(name))
                yield
            finally:
                for name in contents or {}:
                    await self._tidy(name)

    async def _tidy(self, name: str) -> None:
        """Drop what no job has noted. A failure only logs: the answer is already decided."""
        try:
            if await self._store.ask(deleting.unused, name):
                await self._pictures.drop(name)
        except (Unavailable, OSError) as error:
            log.warning("picture %s may be stored without a job: %s", name, error)

    async def _keep(self, name: str, content: bytes | None) -> None:
        try:
            if content is not None:
                await self._pictures.put(content)
            elif not await self._pictures.has(name):
                raise Refused(GONE, 404)
        except OSError as error:
            raise Refused("Pictures cannot be stored just now: try again soon.", 429) from error
