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
from bot.images.async_cache import AsyncCache
from bot.images.films.formats import FILM_FORMATS
from bot.images.gallery import CACHED_FILES, NO_FILM, NO_LADDER, PICTURE_GONE, Gallery
from bot.images.image_codec import decode_image, encode_image
from bot.images.picture_store import PictureStore
from bot.store import JobRecord, Store, StoredPicture
from bot.store.jobs import queries
from engine.contract import Keyframe, Ladder, encode
from shared.stored_jobs import asked, draft

pytestmark = pytest.mark.asyncio
LATENTS = b"\0" * (4 * 4 * 8 * 8)


def picture(shade: int) -> bytes:
    return encode_image(Image.new("RGB", (64, 64), (shade, 40, 200)), "PNG")


def ladder(job: str, image: int, *, whole: bool = True) -> bytes:
    rungs = []
    for step in range(1, 13):
        out = io.BytesIO()
        Image.new("RGB", (64, 64), (10 * step, 40, 60 * image)).save(out, "WEBP", lossless=True)
        latent = LATENTS if whole and step % 4 == 0 else None
        rungs.append(Keyframe(step=step, thumbnail=out.getvalue(), latent=latent))
    return encode(Ladder(job=job, image=image, of=12, shape=(4, 8, 8), rungs=tuple(rungs)))


class GalleryRig:
    """A gallery over a real store, and jobs that ended in it."""

    def __init__(self, store: Store, pictures: PictureStore) -> None:
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
        assert await self.store.end_job("finish", job, 1.0, 2.0)
        return job

    async def _keep(self, job: str, image: int, kind: Any, content: bytes, verdict: str) -> None:
        sha = await self.pictures.put(content)
        assert await self.store.record_picture(
            StoredPicture(job, image, kind, sha, len(content), 64, 64, verdict), 0, 0.0
        )


@pytest_asyncio.fixture
async def rig(local: Store, tmp_path: Any) -> GalleryRig:
    return GalleryRig(local, await asyncio.to_thread(PictureStore, tmp_path / "pictures"))


Ask = Callable[[Gallery, str, int], Coroutine[Any, Any, Any]]
OF_ONE: dict[str, Ask] = {
    "dissolve": lambda gallery, job, index: gallery.render_dissolve(job, index),
    "there_and_back": lambda gallery, job, index: gallery.render_dissolve_and_back(job, index),
    "sheet": lambda gallery, job, index: gallery.render_contact_sheet(job, index),
    "ladder": lambda gallery, job, index: gallery.find_ladder(job, index),
    "compared": lambda gallery, job, index: gallery.render_comparison([(job, index), (job, index)], ["a", "b"]),
}
ONE = pytest.mark.parametrize("ask", OF_ONE.values(), ids=OF_ONE.keys())


def count(film: bytes) -> int:
    with Image.open(io.BytesIO(film)) as opened:
        return int(getattr(opened, "n_frames", 1))


@pytest.mark.slow
async def test_films_exist_in_every_format_and_fit_a_limit(rig: GalleryRig) -> None:
    job = await rig.job()
    heads = {"webp": (8, b"WEBP"), "avif": (4, b"ftypavis"), "gif": (0, b"GIF89a"), "mp4": (4, b"ftypisom")}
    for kind in FILM_FORMATS:
        at, head = heads[kind]
        for film in (
            await rig.gallery.render_film(job, film_format=kind),
            await rig.gallery.render_dissolve(job, 0, kind),
            await rig.gallery.render_dissolve_and_back(job, 0, kind),
        ):
            assert film[at : at + len(head)] == head
    whole = await rig.gallery.render_film(job)
    assert count(whole) == 12
    small = await rig.gallery.render_film(job, len(whole) // 2)
    assert len(small) <= len(whole) // 2
    assert await rig.gallery.render_film(job, 1 << 40) == whole, "never larger than Discord accepts"
    with pytest.raises(UserError, match="too large") as refused:
        await rig.gallery.render_dissolve(job, 0, limit=300)
    assert refused.value.status == 413


@pytest.mark.slow
async def test_each_picture_has_a_noising_film_of_its_own_and_a_way_back(rig: GalleryRig) -> None:
    job = await rig.job()
    first, second = [await rig.gallery.render_dissolve(job, index) for index in (0, 1)]
    assert first != second
    for film, shade in ((first, 60), (second, 120)):
        start = np.asarray(decode_image(film), int)  # the first frame
        assert np.abs(start - np.array([shade, 40, 200])).mean() < 6
    both = await rig.gallery.render_dissolve_and_back(job, 1)
    assert count(both) == count(second) + 12
    assert await Gallery(rig.store, rig.pictures).render_dissolve_and_back(job, 1) == both


async def test_the_gallery_lists_and_shows_the_steps_to_branch_from(rig: GalleryRig) -> None:
    job = await rig.job()
    assert await rig.gallery.branch_steps(job, 1) == (4, 8)
    sheets = [decode_image(await rig.gallery.render_contact_sheet(job, index)) for index in (0, 1)]
    assert [one.size for one in sheets] == [(388, 219)] * 2
    for image, one in enumerate(sheets):
        for place, step in enumerate((4, 8)):
            at = np.asarray(one, int)[96, 96 + 196 * place]
            assert np.abs(at - np.array([10 * step, 40, 60 * image])).max() < 12
    old = await rig.job(whole=False)
    assert await rig.gallery.branch_steps(old, 0) == ()
    with pytest.raises(UserError, match="no keyframes to branch from"):
        await rig.gallery.render_contact_sheet(old, 0)


async def test_parent_and_branch_are_compared_side_by_side(rig: GalleryRig) -> None:
    parent, branch = await rig.job(1), await rig.job(2)
    sheet = await rig.gallery.render_comparison([(parent, 0), (branch, 1)], ["parent", "branch at step 4"])
    pixels = np.asarray(decode_image(sheet), int)
    assert sheet.startswith(b"\x89PNG")
    assert (pixels[100, 100, 0], pixels[100, 400, 0]) == (60, 120)
    other = await rig.gallery.render_comparison([(parent, 0), (branch, 1)], ["parent", "another"])
    assert other != sheet
    for shots, labels in (([(parent, 0)], ["a"]), ([(parent, 0)] * 5, ["a"] * 5), ([(parent, 0)] * 2, ["a"])):
        with pytest.raises(UserError, match="Two to four"):
            await rig.gallery.render_comparison(shots, labels)


@pytest.mark.sampled
@ONE
async def test_a_held_picture_is_shown_in_no_other_form(rig: GalleryRig, ask: Ask) -> None:
    job = await rig.job(verdicts={0: "flagged", 1: "passed"})
    assert await ask(rig.gallery, job, 1)
    with pytest.raises(UserError, match="Picture 1 is held") as refused:
        await ask(rig.gallery, job, 0)
    assert refused.value.status == 403


async def test_a_comparison_with_a_held_picture_is_refused(rig: GalleryRig) -> None:
    job = await rig.job(verdicts={0: "passed", 1: "unchecked"})
    with pytest.raises(UserError) as refused:
        await rig.gallery.render_comparison([(job, 0), (job, 1)], ["a", "b"])
    assert refused.value.status == 403


async def test_a_film_of_any_format_leaves_out_held_pictures(rig: GalleryRig) -> None:
    job, all_held = await rig.job(verdicts={0: "flagged"}), await rig.job(1, verdicts={0: "flagged"})
    for kind in FILM_FORMATS[:3]:
        with Image.open(io.BytesIO(await rig.gallery.render_film(job, film_format=kind))) as film:
            assert film.size == (256, 256)
        with pytest.raises(UserError, match="held by the picture check") as refused:
            await rig.gallery.render_film(all_held, film_format=kind)
        assert refused.value.status == 403


@ONE
async def test_a_missing_picture_is_refused_with_404(rig: GalleryRig, ask: Ask) -> None:
    job = await rig.job()
    for where, index in ((job, 2), ("0" * 26, 0)):
        with pytest.raises(UserError, match="no such picture") as refused:
            await ask(rig.gallery, where, index)
        assert refused.value.status == 404


@pytest.mark.parametrize("name", ["there_and_back", "sheet"])
async def test_a_missing_or_damaged_ladder_is_refused_with_404(rig: GalleryRig, name: str) -> None:
    bare, spoilt = await rig.job(ladders=False), await rig.job(spoilt=True)
    with pytest.raises(UserError) as refused:
        await OF_ONE[name](rig.gallery, bare, 0)
    assert (refused.value.sentence, refused.value.status) == (NO_LADDER, 404)
    with pytest.raises(UserError, match="no keyframes"):
        await rig.gallery.find_ladder(bare, 0)
    with pytest.raises(UserError) as refused:
        await OF_ONE[name](rig.gallery, spoilt, 0)
    assert refused.value.status == 404
    with pytest.raises(UserError) as refused:
        await rig.gallery.render_film(spoilt)
    assert (refused.value.sentence, refused.value.status) == (NO_FILM, 404)


async def test_a_picture_whose_file_is_deleted_is_refused_with_404(rig: GalleryRig) -> None:
    job = await rig.job()
    await rig.pictures.delete((await rig.gallery.find_visible(job, 0)).sha256)
    with pytest.raises(UserError) as refused:
        await rig.gallery.render_dissolve(job, 0)
    assert (refused.value.sentence, refused.value.status) == (PICTURE_GONE, 404)


async def test_results_are_cached_for_a_while(rig: GalleryRig) -> None:
    job = await rig.job()
    sheet = await rig.gallery.render_contact_sheet(job, 0)
    assert await rig.gallery.render_contact_sheet(job, 0) is sheet
    assert await rig.gallery.render_contact_sheet(job, 1) is not sheet
    for number in range(CACHED_FILES):
        await rig.gallery.render_comparison([(job, 0), (job, 1)], [str(number), ""])
    again = await rig.gallery.render_contact_sheet(job, 0)
    assert again is not sheet
    assert again == sheet


async def test_a_ladder_is_read_once_for_all_its_keyframes(rig: GalleryRig) -> None:
    job = await rig.job()
    fresh = Gallery(rig.store, rig.pictures)
    steps = await fresh.keyframe_steps(job)
    assert await fresh.branch_steps(job, 0) == (4, 8)
    for one in await rig.store.query(queries.list_pictures, [job]):
        if one.kind == "ladder":
            await rig.pictures.delete(one.sha256)
    grids = await asyncio.gather(*(fresh.render_keyframe_grid(job, n) for n in range(len(steps))))
    assert len(set(grids)) == len(steps)
    assert (await fresh.keyframe_steps(job), await fresh.branch_steps(job, 0)) == (steps, (4, 8))
    with pytest.raises(UserError, match="no such keyframe"):
        await fresh.render_keyframe_grid(job, len(steps))


async def test_the_cache_computes_each_result_once_and_one_at_a_time() -> None:
    cache, now, most = AsyncCache[str](2), 0, 0

    async def make(what: str) -> str:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.01)
        now -= 1
        return what * 2

    calls = [cache.get_or_make((what,), lambda what=what: make(what)) for what in "aabba"]
    found = await asyncio.gather(*calls)
    assert (found, most) == (["aa", "aa", "bb", "bb", "aa"], 1)
    again = [await cache.get_or_make((what,), lambda: make("new")) for what in "abcba"]
    assert again == ["aa", "bb", "newnew", "bb", "newnew"], "the cache holds two results"


@pytest.mark.slow
async def test_a_film_request_decodes_each_keyframe_once_and_leaves_the_ladder_unchanged(rig: GalleryRig) -> None:
    job = await rig.job()
    soft = await Gallery(rig.store, rig.pictures).render_film(job)
    decoded_ladders, has_decoder = list[bytes](), [False]
    sharp = tuple(encode_image(Image.new("RGB", (64, 64), (0, 250, 10 * step)), "JPEG") for step in range(12))

    async def decode(record: JobRecord, content: bytes) -> tuple[bytes, ...]:
        assert record.id == job
        decoded_ladders.append(content)
        return sharp if has_decoder[0] else ()

    gallery = Gallery(rig.store, rig.pictures, decode)
    assert await gallery.render_film(job) == soft, "without a decoder it shows the preview map's pictures"
    assert len(decoded_ladders) == 1
    has_decoder[0] = True
    film = await gallery.render_film(job)
    assert film != soft
    assert decoded_ladders[1:] == [ladder(job, 0), ladder(job, 1)]
    first = decode_image(await gallery.render_keyframe_grid(job, 0))
    assert first.getpixel((20, 20))[1] > 230  # type: ignore[index]
    assert await gallery.keyframe_steps(job) == list(range(1, 13))
    sheet = await gallery.render_contact_sheet(job, 0)
    assert sheet != await rig.gallery.render_contact_sheet(job, 0)
    assert await gallery.branch_steps(job, 0) == (4, 8)
    assert await gallery.render_dissolve_and_back(job, 0) != await rig.gallery.render_dissolve_and_back(job, 0)
    assert await gallery.render_film(job) == film
    assert len(decoded_ladders) == 3, "cached: the second film decodes nothing"
    assert await gallery.read_file(await gallery.find_ladder(job, 0)) == ladder(job, 0)
