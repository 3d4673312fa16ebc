"""What is made of finished pictures: films of every kind, sheets, comparisons; and what is held is in none of them."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable, Coroutine
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
from PIL import Image

from bot.images.film_formats import KINDS
from bot.images.gallery import GONE, KEPT, NO_FILM, NO_LADDER, Gallery
from bot.images.made import Made
from bot.images.pictures import Pictures
from bot.images.pixels import opened, saved
from bot.refused import Refused
from bot.store import Record, Store, Stored, reads
from engine.job import Ladder, Rung, encode
from kept import asked, draft

pytestmark = pytest.mark.asyncio
WHOLE = b"\0" * (4 * 4 * 8 * 8)


def picture(shade: int) -> bytes:
    return saved(Image.new("RGB", (64, 64), (shade, 40, 200)), "PNG")


def ladder(job: str, image: int, *, whole: bool = True) -> bytes:
    rungs = []
    for step in range(1, 13):
        out = io.BytesIO()
        Image.new("RGB", (64, 64), (10 * step, 40, 60 * image)).save(out, "WEBP", lossless=True)
        latent = WHOLE if whole and step % 4 == 0 else None
        rungs.append(Rung(step=step, thumbnail=out.getvalue(), latent=latent))
    return encode(Ladder(job=job, image=image, of=12, shape=(4, 8, 8), rungs=tuple(rungs)))


class Shelves:
    """A gallery over a real store, and jobs that ended in it."""

    def __init__(self, store: Store, pictures: Pictures) -> None:
        self.store, self.pictures, self.gallery = store, pictures, Gallery(store, pictures)

    async def job(
        self, count: int = 2, *, verdicts: dict[int, str] | None = None, ladders: bool = True, whole: bool = True,
        spoilt: bool = False,
    ) -> str:  # fmt: skip
        job = await asked(self.store, draft(check=verdicts is not None))
        for image in range(count):
            verdict = (verdicts or {}).get(image, "passed")
            await self._keep(job, image, "image", picture(60 + 60 * image), verdict)
            if ladders:
                content = b"spoilt" if spoilt else ladder(job, image, whole=whole)
                await self._keep(job, image, "ladder", content, "unchecked")
        assert await self.store.end("finish", job, 1.0, 2.0)
        return job

    async def _keep(self, job: str, image: int, kind: Any, content: bytes, verdict: str) -> None:
        sha = await self.pictures.put(content)
        assert await self.store.keep(Stored(job, image, kind, sha, len(content), 64, 64, verdict), 0, 0.0)


@pytest_asyncio.fixture
async def shelves(local: Store, tmp_path: Any) -> Shelves:
    return Shelves(local, await asyncio.to_thread(Pictures, tmp_path / "pictures"))


Ask = Callable[[Gallery, str, int], Coroutine[Any, Any, Any]]
OF_ONE: dict[str, Ask] = {
    "dissolve": lambda gallery, job, index: gallery.dissolve(job, index),
    "there_and_back": lambda gallery, job, index: gallery.there_and_back(job, index),
    "sheet": lambda gallery, job, index: gallery.sheet(job, index),
    "ladder": lambda gallery, job, index: gallery.ladder(job, index),
    "compared": lambda gallery, job, index: gallery.compared([(job, index), (job, index)], ["a", "b"]),
}
ONE = pytest.mark.parametrize("ask", OF_ONE.values(), ids=OF_ONE.keys())


def count(film: bytes) -> int:
    with Image.open(io.BytesIO(film)) as opened:
        return int(getattr(opened, "n_frames", 1))


async def test_films_of_every_kind_and_limit(shelves: Shelves) -> None:
    job = await shelves.job()
    heads = {"webp": (8, b"WEBP"), "avif": (4, b"ftypavis"), "gif": (0, b"GIF89a"), "mp4": (4, b"ftypisom")}
    for kind in KINDS:
        at, head = heads[kind]
        for made in (
            await shelves.gallery.film(job, kind=kind),
            await shelves.gallery.dissolve(job, 0, kind),
            await shelves.gallery.there_and_back(job, 0, kind),
        ):
            assert made[at : at + len(head)] == head
    whole = await shelves.gallery.film(job)
    assert count(whole) == 12
    small = await shelves.gallery.film(job, len(whole) // 2)
    assert len(small) <= len(whole) // 2
    assert await shelves.gallery.film(job, 1 << 40) == whole, "never over what Discord takes"
    with pytest.raises(Refused, match="too large") as refused:
        await shelves.gallery.dissolve(job, 0, limit=300)
    assert refused.value.status == 413


async def test_each_picture_dissolves_for_itself_and_comes_back(shelves: Shelves) -> None:
    job = await shelves.job()
    first, second = [await shelves.gallery.dissolve(job, index) for index in (0, 1)]
    assert first != second
    for made, shade in ((first, 60), (second, 120)):
        start = np.asarray(opened(made), int)  # the first frame
        assert np.abs(start - np.array([shade, 40, 200])).mean() < 6
    both = await shelves.gallery.there_and_back(job, 1)
    assert count(both) == count(second) + 12
    assert await Gallery(shelves.store, shelves.pictures).there_and_back(job, 1) == both


async def test_the_steps_to_branch_at_and_what_they_show(shelves: Shelves) -> None:
    job = await shelves.job()
    assert await shelves.gallery.branchable(job, 1) == (4, 8)
    sheets = [opened(await shelves.gallery.sheet(job, index)) for index in (0, 1)]
    assert [one.size for one in sheets] == [(388, 219)] * 2
    for image, one in enumerate(sheets):
        for place, step in enumerate((4, 8)):
            at = np.asarray(one, int)[96, 96 + 196 * place]
            assert np.abs(at - np.array([10 * step, 40, 60 * image])).max() < 12
    old = await shelves.job(whole=False)
    assert await shelves.gallery.branchable(old, 0) == ()
    with pytest.raises(Refused, match="no keyframes to branch from"):
        await shelves.gallery.sheet(old, 0)


async def test_parent_and_branch_side_by_side(shelves: Shelves) -> None:
    parent, branch = await shelves.job(1), await shelves.job(2)
    made = await shelves.gallery.compared([(parent, 0), (branch, 1)], ["parent", "branch at step 4"])
    shown = np.asarray(opened(made), int)
    assert made.startswith(b"\x89PNG")
    assert (shown[100, 100, 0], shown[100, 400, 0]) == (60, 120)
    other = await shelves.gallery.compared([(parent, 0), (branch, 1)], ["parent", "another"])
    assert other != made
    for shots, labels in (([(parent, 0)], ["a"]), ([(parent, 0)] * 5, ["a"] * 5), ([(parent, 0)] * 2, ["a"])):
        with pytest.raises(Refused, match="Two to four"):
            await shelves.gallery.compared(shots, labels)


@ONE
async def test_what_is_held_is_not_shown_in_another_form(shelves: Shelves, ask: Ask) -> None:
    job = await shelves.job(verdicts={0: "flagged", 1: "passed"})
    assert await ask(shelves.gallery, job, 1)
    with pytest.raises(Refused, match="Picture 1 is held") as refused:
        await ask(shelves.gallery, job, 0)
    assert refused.value.status == 403


async def test_a_comparison_with_one_held_picture_is_none(shelves: Shelves) -> None:
    job = await shelves.job(verdicts={0: "passed", 1: "unchecked"})
    with pytest.raises(Refused) as refused:
        await shelves.gallery.compared([(job, 0), (job, 1)], ["a", "b"])
    assert refused.value.status == 403


async def test_the_film_of_every_kind_leaves_out_what_is_held(shelves: Shelves) -> None:
    job, all_held = await shelves.job(verdicts={0: "flagged"}), await shelves.job(1, verdicts={0: "flagged"})
    for kind in KINDS[:3]:
        with Image.open(io.BytesIO(await shelves.gallery.film(job, kind=kind))) as film:
            assert film.size == (256, 256)
        with pytest.raises(Refused, match="held by the picture check") as refused:
            await shelves.gallery.film(all_held, kind=kind)
        assert refused.value.status == 403


@ONE
async def test_where_there_is_nothing_that_is_said(shelves: Shelves, ask: Ask) -> None:
    job = await shelves.job()
    for where, index in ((job, 2), ("0" * 26, 0)):
        with pytest.raises(Refused, match="no such picture") as refused:
            await ask(shelves.gallery, where, index)
        assert refused.value.status == 404


@pytest.mark.parametrize("name", ["there_and_back", "sheet"])
async def test_a_picture_without_a_ladder(shelves: Shelves, name: str) -> None:
    bare, spoilt = await shelves.job(ladders=False), await shelves.job(spoilt=True)
    with pytest.raises(Refused) as refused:
        await OF_ONE[name](shelves.gallery, bare, 0)
    assert (refused.value.sentence, refused.value.status) == (NO_LADDER, 404)
    with pytest.raises(Refused, match="no ladder"):
        await shelves.gallery.ladder(bare, 0)
    with pytest.raises(Refused) as refused:
        await OF_ONE[name](shelves.gallery, spoilt, 0)
    assert refused.value.status == 404
    with pytest.raises(Refused) as refused:
        await shelves.gallery.film(spoilt)
    assert (refused.value.sentence, refused.value.status) == (NO_FILM, 404)


async def test_a_picture_that_is_not_kept_any_more(shelves: Shelves) -> None:
    job = await shelves.job()
    await shelves.pictures.drop((await shelves.gallery.stored(job, 0)).sha256)
    with pytest.raises(Refused) as refused:
        await shelves.gallery.dissolve(job, 0)
    assert (refused.value.sentence, refused.value.status) == (GONE, 404)


async def test_what_was_made_is_kept_for_a_while(shelves: Shelves) -> None:
    job = await shelves.job()
    made = await shelves.gallery.sheet(job, 0)
    assert await shelves.gallery.sheet(job, 0) is made
    assert await shelves.gallery.sheet(job, 1) is not made
    for number in range(KEPT):
        await shelves.gallery.compared([(job, 0), (job, 1)], [str(number), ""])
    again = await shelves.gallery.sheet(job, 0)
    assert again is not made
    assert again == made


async def test_a_ladder_is_read_once_however_many_of_its_rungs_are_looked_at(shelves: Shelves) -> None:
    job = await shelves.job()
    fresh = Gallery(shelves.store, shelves.pictures)
    steps = await fresh.rungs(job)
    assert await fresh.branchable(job, 0) == (4, 8)
    for one in await shelves.store.ask(reads.stored, [job]):
        if one.kind == "ladder":
            await shelves.pictures.drop(one.sha256)
    drawn = await asyncio.gather(*(fresh.rung(job, n) for n in range(len(steps))))
    assert len(set(drawn)) == len(steps)
    assert (await fresh.rungs(job), await fresh.branchable(job, 0)) == (steps, (4, 8))
    with pytest.raises(Refused, match="no such rung"):
        await fresh.rung(job, len(steps))


async def test_what_takes_long_is_made_once_and_one_at_a_time() -> None:
    made, now, most = Made[str](2), 0, 0

    async def make(what: str) -> str:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.01)
        now -= 1
        return what * 2

    asked = [made.of((what,), lambda what=what: make(what)) for what in "aabba"]
    found = await asyncio.gather(*asked)
    assert (found, most) == (["aa", "aa", "bb", "bb", "aa"], 1)
    again = [await made.of((what,), lambda: make("new")) for what in "abcba"]
    assert again == ["aa", "bb", "newnew", "bb", "newnew"], "two are remembered"


async def test_whoever_looks_closely_sees_rungs_decoded_once_and_the_ladder_stays_as_it_is(shelves: Shelves) -> None:
    job = await shelves.job()
    soft = await Gallery(shelves.store, shelves.pictures).film(job)
    asked, there = list[bytes](), [False]
    sharp = tuple(saved(Image.new("RGB", (64, 64), (0, 250, 10 * step)), "JPEG") for step in range(12))

    async def decode(record: Record, content: bytes) -> tuple[bytes, ...]:
        assert record.id == job
        asked.append(content)
        return sharp if there[0] else ()

    gallery = Gallery(shelves.store, shelves.pictures, decode)
    assert await gallery.film(job) == soft, "nobody decodes: the map's are shown"
    assert len(asked) == 1
    there[0] = True
    made = await gallery.film(job)
    assert made != soft
    assert asked[1:] == [ladder(job, 0), ladder(job, 1)]
    first = opened(await gallery.rung(job, 0))
    assert first.getpixel((20, 20))[1] > 230  # type: ignore[index]
    assert await gallery.rungs(job) == list(range(1, 13))
    sheet = await gallery.sheet(job, 0)
    assert sheet != await shelves.gallery.sheet(job, 0)
    assert await gallery.branchable(job, 0) == (4, 8)
    assert await gallery.there_and_back(job, 0) != await shelves.gallery.there_and_back(job, 0)
    assert await gallery.film(job) == made
    assert len(asked) == 3, "kept: the second time nobody is asked"
    assert await gallery.read(await gallery.ladder(job, 0)) == ladder(job, 0)
