"""The gallery: films of every format, contact sheets and comparisons; none of them shows a held picture."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable, Coroutine
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
from PIL import Image

from bot.domain.errors import UserError
from bot.pictures.animation import FILM_FORMATS
from bot.pictures.gallery import CACHED_FILES, NO_FILM, NO_LADDER, PICTURE_GONE, Gallery
from bot.pictures.image_codec import decode_image, encode_image
from bot.pictures.picture_store import PictureStore
from bot.pictures.thumbnail_decoder import AsyncCache
from bot.store import JobRecord, Store, StoredPicture
from bot.store.jobs import queries
from engine.contract import Keyframe, Ladder, encode
from shared.stored_jobs import admit_job, make_new_job

pytestmark = pytest.mark.asyncio
LATENTS = b"\0" * (4 * 4 * 8 * 8)


def picture(shade: int) -> bytes:
    return encode_image(Image.new("RGB", (64, 64), (shade, 40, 200)), "PNG")


def ladder(job: str, image: int, *, is_complete: bool = True) -> bytes:
    keyframes = []
    for step in range(1, 13):
        buffer = io.BytesIO()
        Image.new("RGB", (64, 64), (10 * step, 40, 60 * image)).save(buffer, "WEBP", lossless=True)
        latent = LATENTS if is_complete and step % 4 == 0 else None
        keyframes.append(Keyframe(step=step, thumbnail=buffer.getvalue(), latent=latent))
    return encode(Ladder(job=job, image=image, total_steps=12, shape=(4, 8, 8), keyframes=tuple(keyframes)))


class GalleryRig:
    """A gallery over a real store, and jobs that ended in it."""

    def __init__(self, store: Store, pictures: PictureStore) -> None:
        self.store = store
        self.pictures = pictures
        self.gallery = Gallery(store, pictures)

    async def job(
        self,
        count: int = 2,
        *,
        verdicts: dict[int, str] | None = None,
        ladders: bool = True,
        complete_ladders: bool = True,
        damaged_ladders: bool = False,
    ) -> str:
        job = await admit_job(self.store, make_new_job(check=verdicts is not None))
        for image in range(count):
            verdict = (verdicts or {}).get(image, "passed")
            await self._store_picture(job, image, "image", picture(60 + 60 * image), verdict)
            if ladders:
                content = b"spoilt" if damaged_ladders else ladder(job, image, is_complete=complete_ladders)
                await self._store_picture(job, image, "ladder", content, "unchecked")
        assert await self.store.end_job("finish", job, 1.0, 2.0)
        return job

    async def _store_picture(self, job: str, image: int, kind: Any, content: bytes, verdict: str) -> None:
        sha = await self.pictures.put(content)
        assert await self.store.record_picture(
            StoredPicture(job, image, kind, sha, len(content), 64, 64, verdict), 0, 0.0
        )


@pytest_asyncio.fixture
async def gallery_rig(sqlite_store: Store, tmp_path: Any) -> GalleryRig:
    return GalleryRig(sqlite_store, await asyncio.to_thread(PictureStore, tmp_path / "pictures"))


Render = Callable[[Gallery, str, int], Coroutine[Any, Any, Any]]
OF_ONE: dict[str, Render] = {
    "dissolve": lambda gallery, job, index: gallery.render_dissolve(job, index),
    "there_and_back": lambda gallery, job, index: gallery.render_dissolve_and_back(job, index),
    "sheet": lambda gallery, job, index: gallery.render_contact_sheet(job, index),
    "ladder": lambda gallery, job, index: gallery.find_ladder(job, index),
    "compared": lambda gallery, job, index: gallery.render_comparison([(job, index), (job, index)], ["a", "b"]),
}
ONE = pytest.mark.parametrize("render", OF_ONE.values(), ids=OF_ONE.keys())


def count(film: bytes) -> int:
    with Image.open(io.BytesIO(film)) as image:
        return int(getattr(image, "n_frames", 1))


@pytest.mark.slow
async def test_films_exist_in_every_format_and_fit_a_limit(gallery_rig: GalleryRig) -> None:
    job = await gallery_rig.job()
    heads = {"webp": (8, b"WEBP"), "avif": (4, b"ftypavis"), "gif": (0, b"GIF89a"), "mp4": (4, b"ftypisom")}
    for kind in FILM_FORMATS:
        offset, head = heads[kind]
        for film in (
            await gallery_rig.gallery.render_film(job, film_format=kind),
            await gallery_rig.gallery.render_dissolve(job, 0, kind),
            await gallery_rig.gallery.render_dissolve_and_back(job, 0, kind),
        ):
            assert film[offset : offset + len(head)] == head
    full_film = await gallery_rig.gallery.render_film(job)
    assert count(full_film) == 12
    small = await gallery_rig.gallery.render_film(job, len(full_film) // 2)
    assert len(small) <= len(full_film) // 2
    assert await gallery_rig.gallery.render_film(job, 1 << 40) == full_film, "never larger than Discord accepts"
    with pytest.raises(UserError, match="too large") as error:
        await gallery_rig.gallery.render_dissolve(job, 0, limit=300)
    assert error.value.status == 413


@pytest.mark.slow
async def test_each_picture_has_a_noising_film_of_its_own_and_a_way_back(gallery_rig: GalleryRig) -> None:
    job = await gallery_rig.job()
    first, second = [await gallery_rig.gallery.render_dissolve(job, index) for index in (0, 1)]
    assert first != second
    for film, shade in ((first, 60), (second, 120)):
        start = np.asarray(decode_image(film), int)  # the first frame
        assert np.abs(start - np.array([shade, 40, 200])).mean() < 6
    both_films = await gallery_rig.gallery.render_dissolve_and_back(job, 1)
    assert count(both_films) == count(second) + 12
    assert await Gallery(gallery_rig.store, gallery_rig.pictures).render_dissolve_and_back(job, 1) == both_films


async def test_the_gallery_lists_and_shows_the_steps_to_branch_from(gallery_rig: GalleryRig) -> None:
    job = await gallery_rig.job()
    assert await gallery_rig.gallery.branch_steps(job, 1) == (4, 8)
    sheets = [decode_image(await gallery_rig.gallery.render_contact_sheet(job, index)) for index in (0, 1)]
    assert [one.size for one in sheets] == [(388, 219)] * 2
    for image, one in enumerate(sheets):
        for index, step in enumerate((4, 8)):
            corner = np.asarray(one, int)[96, 96 + 196 * index]
            assert np.abs(corner - np.array([10 * step, 40, 60 * image])).max() < 12
    old = await gallery_rig.job(complete_ladders=False)
    assert await gallery_rig.gallery.branch_steps(old, 0) == ()
    with pytest.raises(UserError, match="no keyframes to branch from"):
        await gallery_rig.gallery.render_contact_sheet(old, 0)


async def test_parent_and_branch_are_compared_side_by_side(gallery_rig: GalleryRig) -> None:
    parent = await gallery_rig.job(1)
    branch = await gallery_rig.job(2)
    sheet = await gallery_rig.gallery.render_comparison([(parent, 0), (branch, 1)], ["parent", "branch at step 4"])
    pixels = np.asarray(decode_image(sheet), int)
    assert sheet.startswith(b"\x89PNG")
    assert (pixels[100, 100, 0], pixels[100, 400, 0]) == (60, 120)
    other = await gallery_rig.gallery.render_comparison([(parent, 0), (branch, 1)], ["parent", "another"])
    assert other != sheet
    for picture_refs, labels in (([(parent, 0)], ["a"]), ([(parent, 0)] * 5, ["a"] * 5), ([(parent, 0)] * 2, ["a"])):
        with pytest.raises(UserError, match="Two to four"):
            await gallery_rig.gallery.render_comparison(picture_refs, labels)


@pytest.mark.sampled
@ONE
async def test_a_held_picture_is_shown_in_no_other_form(gallery_rig: GalleryRig, render: Render) -> None:
    job = await gallery_rig.job(verdicts={0: "flagged", 1: "passed"})
    assert await render(gallery_rig.gallery, job, 1)
    with pytest.raises(UserError, match="Picture 1 is held") as error:
        await render(gallery_rig.gallery, job, 0)
    assert error.value.status == 403


async def test_a_comparison_with_a_held_picture_is_refused(gallery_rig: GalleryRig) -> None:
    job = await gallery_rig.job(verdicts={0: "passed", 1: "unchecked"})
    with pytest.raises(UserError) as error:
        await gallery_rig.gallery.render_comparison([(job, 0), (job, 1)], ["a", "b"])
    assert error.value.status == 403


async def test_a_film_of_any_format_leaves_out_held_pictures(gallery_rig: GalleryRig) -> None:
    job = await gallery_rig.job(verdicts={0: "flagged"})
    all_held = await gallery_rig.job(1, verdicts={0: "flagged"})
    for kind in FILM_FORMATS[:3]:
        with Image.open(io.BytesIO(await gallery_rig.gallery.render_film(job, film_format=kind))) as film:
            assert film.size == (256, 256)
        with pytest.raises(UserError, match="held by the picture check") as error:
            await gallery_rig.gallery.render_film(all_held, film_format=kind)
        assert error.value.status == 403


@ONE
async def test_a_missing_picture_is_refused_with_404(gallery_rig: GalleryRig, render: Render) -> None:
    job = await gallery_rig.job()
    for target, index in ((job, 2), ("0" * 26, 0)):
        with pytest.raises(UserError, match="no such picture") as error:
            await render(gallery_rig.gallery, target, index)
        assert error.value.status == 404


@pytest.mark.parametrize("name", ["there_and_back", "sheet"])
async def test_a_missing_or_damaged_ladder_is_refused_with_404(gallery_rig: GalleryRig, name: str) -> None:
    job_without_ladders = await gallery_rig.job(ladders=False)
    job_with_damaged_ladders = await gallery_rig.job(damaged_ladders=True)
    with pytest.raises(UserError) as error:
        await OF_ONE[name](gallery_rig.gallery, job_without_ladders, 0)
    assert (error.value.sentence, error.value.status) == (NO_LADDER, 404)
    with pytest.raises(UserError, match="no keyframes"):
        await gallery_rig.gallery.find_ladder(job_without_ladders, 0)
    with pytest.raises(UserError) as error:
        await OF_ONE[name](gallery_rig.gallery, job_with_damaged_ladders, 0)
    assert error.value.status == 404
    with pytest.raises(UserError) as error:
        await gallery_rig.gallery.render_film(job_with_damaged_ladders)
    assert (error.value.sentence, error.value.status) == (NO_FILM, 404)


async def test_a_picture_whose_file_is_deleted_is_refused_with_404(gallery_rig: GalleryRig) -> None:
    job = await gallery_rig.job()
    await gallery_rig.pictures.delete((await gallery_rig.gallery.find_visible(job, 0)).sha256)
    with pytest.raises(UserError) as error:
        await gallery_rig.gallery.render_dissolve(job, 0)
    assert (error.value.sentence, error.value.status) == (PICTURE_GONE, 404)


async def test_results_are_cached_for_a_while(gallery_rig: GalleryRig) -> None:
    job = await gallery_rig.job()
    sheet = await gallery_rig.gallery.render_contact_sheet(job, 0)
    assert await gallery_rig.gallery.render_contact_sheet(job, 0) is sheet
    assert await gallery_rig.gallery.render_contact_sheet(job, 1) is not sheet
    for number in range(CACHED_FILES):
        await gallery_rig.gallery.render_comparison([(job, 0), (job, 1)], [str(number), ""])
    cached_again = await gallery_rig.gallery.render_contact_sheet(job, 0)
    assert cached_again is not sheet
    assert cached_again == sheet


async def test_a_ladder_is_read_once_for_all_its_keyframes(gallery_rig: GalleryRig) -> None:
    job = await gallery_rig.job()
    gallery = Gallery(gallery_rig.store, gallery_rig.pictures)
    steps = await gallery.keyframe_steps(job)
    assert await gallery.branch_steps(job, 0) == (4, 8)
    for one in await gallery_rig.store.query(queries.list_pictures, [job]):
        if one.kind == "ladder":
            await gallery_rig.pictures.delete(one.sha256)
    grids = await asyncio.gather(*(gallery.render_keyframe_grid(job, n) for n in range(len(steps))))
    assert len(set(grids)) == len(steps)
    assert (await gallery.keyframe_steps(job), await gallery.branch_steps(job, 0)) == (steps, (4, 8))
    with pytest.raises(UserError, match="no such keyframe"):
        await gallery.render_keyframe_grid(job, len(steps))


async def test_the_cache_computes_each_result_once_and_one_at_a_time() -> None:
    cache = AsyncCache[str](2)
    now = 0
    max_running = 0

    async def make(key: str) -> str:
        nonlocal now, max_running
        now += 1
        max_running = max(max_running, now)
        await asyncio.sleep(0.01)
        now -= 1
        return key * 2

    calls = [cache.get_or_make((key,), lambda key=key: make(key)) for key in "aabba"]
    values = await asyncio.gather(*calls)
    assert (values, max_running) == (["aa", "aa", "bb", "bb", "aa"], 1)
    cached_values = [await cache.get_or_make((key,), lambda: make("new")) for key in "abcba"]
    assert cached_values == ["aa", "bb", "newnew", "bb", "newnew"], "the cache holds two results"


@pytest.mark.slow
async def test_a_film_request_decodes_each_keyframe_once_and_leaves_the_ladder_unchanged(
    gallery_rig: GalleryRig,
) -> None:
    job = await gallery_rig.job()
    first_film = await Gallery(gallery_rig.store, gallery_rig.pictures).render_film(job)
    decoded_ladders = list[bytes]()
    has_decoder = [False]
    exact_frames = tuple(encode_image(Image.new("RGB", (64, 64), (0, 250, 10 * step)), "JPEG") for step in range(12))

    async def decode(record: JobRecord, content: bytes) -> tuple[bytes, ...]:
        assert record.id == job
        decoded_ladders.append(content)
        return exact_frames if has_decoder[0] else ()

    gallery = Gallery(gallery_rig.store, gallery_rig.pictures, decode)
    assert await gallery.render_film(job) == first_film, "without a decoder it shows the preview map's pictures"
    assert len(decoded_ladders) == 1
    has_decoder[0] = True
    film = await gallery.render_film(job)
    assert film != first_film
    assert decoded_ladders[1:] == [ladder(job, 0), ladder(job, 1)]
    first = decode_image(await gallery.render_keyframe_grid(job, 0))
    assert first.getpixel((20, 20))[1] > 230  # type: ignore[index]
    assert await gallery.keyframe_steps(job) == list(range(1, 13))
    sheet = await gallery.render_contact_sheet(job, 0)
    assert sheet != await gallery_rig.gallery.render_contact_sheet(job, 0)
    assert await gallery.branch_steps(job, 0) == (4, 8)
    assert await gallery.render_dissolve_and_back(job, 0) != await gallery_rig.gallery.render_dissolve_and_back(job, 0)
    assert await gallery.render_film(job) == film
    assert len(decoded_ladders) == 3, "cached: the second film decodes nothing"
    assert await gallery.read_file(await gallery.find_ladder(job, 0)) == ladder(job, 0)
