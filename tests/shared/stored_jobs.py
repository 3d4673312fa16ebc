"""Creates jobs with stored pictures directly in the store, for tests of their later life."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ulid import ULID

from bot.domain.dto import Destination, Member
from bot.pictures.picture_store import PictureStore
from bot.store import NewJob, Store, StoredPicture
from engine.contract import Concept, Recipe

RECIPE = Recipe(
    concepts=(Concept(text="a lamp"),),
    model="embedded",
    sampler="ddim",
    steps=40,
    seed=7,
    guidance=3.0,
    width=64,
    height=64,
    dtype="float32",
)
PICTURE_BYTES = 1000  # bytes of each picture


def make_new_job(
    user: str = "local:ann",
    *,
    created_at: float = 0.0,
    guild: str = "local",
    destination: Destination | None = None,
    **changes: Any,
):
    return NewJob(
        id=str(ULID()),
        action=changes.pop("action", "imagine"),
        prompt=f"a lamp for {user}",
        notes=(),
        task=RECIPE,
        member=Member(user, user.title(), guild, channel="room"),
        destination=destination or Destination("web", {}),
        pool="default",
        model="embedded",
        cost=4.0,
        created=created_at,
        deadline=created_at + 1e9,
        **changes,
    )


def make_content(text: str) -> bytes:
    return text.encode().ljust(PICTURE_BYTES, b".")


async def admit_job(store: Store, new_job: NewJob) -> str:
    await store.admit_jobs([new_job], None, lambda requests, _ledger: requests, new_job.created)
    return new_job.id


async def finish_job(store: Store, pictures: PictureStore, new_job: NewJob, *texts: str) -> str:
    """A job that finished a second after its request, with these pictures, and used 2 of its 4 s."""
    job = await admit_job(store, new_job)
    for image, text in enumerate(texts or (job,)):
        sha = await pictures.put(make_content(text))
        assert await store.record_picture(
            StoredPicture(job, image, "image", sha, PICTURE_BYTES, 64, 64), 0, new_job.created
        )
    assert await store.end_job("finish", job, new_job.created + 1, 2.0)
    return job


def list_contents(folder: Path) -> set[str]:
    """The texts of all files in a picture store."""
    return {path.read_bytes().decode().rstrip(".") for path in folder.rglob("*") if path.is_file()}
