"""Creates jobs with stored pictures directly in the store, for tests of their later life."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ulid import ULID

from bot.domain.dto import Destination, Member
from bot.images.picture_store import PictureStore
from bot.store import NewJob, Store, StoredPicture
from engine.contract import Concept, Recipe

RECIPE = Recipe(
    concepts=(Concept(text="a lamp"),), model="embedded", sampler="ddim", steps=40, seed=7, guidance=3.0, width=64,
    height=64, dtype="float32",
)  # fmt: skip
SIZE = 1000  # bytes of each picture


def draft(
    user: str = "local:ann",
    *,
    at: float = 0.0,
    guild: str = "local",
    destination: Destination | None = None,
    **more: Any,
):
    return NewJob(
        id=str(ULID()), action=more.pop("action", "imagine"), prompt=f"a lamp for {user}", notes=(), task=RECIPE,
        member=Member(user, user.title(), guild, channel="room"), destination=destination or Destination("web", {}),
        pool="default", model="embedded", cost=4.0, created=at, deadline=at + 1e9, **more,
    )  # fmt: skip


def content(text: str) -> bytes:
    return text.encode().ljust(SIZE, b".")


async def asked(store: Store, one: NewJob) -> str:
    await store.admit_jobs([one], None, lambda taken, _ledger: taken, one.created)
    return one.id


async def finished(store: Store, pictures: PictureStore, one: NewJob, *texts: str) -> str:
    """A job that finished a second after its request, with these pictures, and used 2 of its 4 s."""
    job = await asked(store, one)
    for image, text in enumerate(texts or (job,)):
        sha = await pictures.put(content(text))
        assert await store.record_picture(StoredPicture(job, image, "image", sha, SIZE, 64, 64), 0, one.created)
    assert await store.end_job("finish", job, one.created + 1, 2.0)
    return job


def files(folder: Path) -> set[str]:
    """The texts of all files in a picture store."""
    return {path.read_bytes().decode().rstrip(".") for path in folder.rglob("*") if path.is_file()}
