"""Upscales of uploaded pictures, as jobs of their own: queued, limited and charged as those of finished pictures."""

from __future__ import annotations

from collections.abc import Callable

from bot.domain.dto import AcceptedJob, Destination, Member
from bot.domain.errors import UserError
from bot.queue.job_request import JobRequest
from bot.queue.model_catalog import DEFAULT_POOL, ModelCatalog
from bot.services.admission.admission import Admission
from bot.services.init_images.loader import InitImageLoader
from bot.services.init_images.request import InitImages
from bot.services.jobs.job_maker import JobMaker
from bot.services.jobs.upscales import MAX_SIDE, SUPER_RESOLVER_MS_PER_MP, UPSCALE_FACTORS, upscale_cost
from engine.contract import UpscaleMethod, UpscaleTask


class UploadUpscaler:
    """Decodes an uploaded picture in the sandbox, stores it with its job, and admits the job."""

    def __init__(
        self, catalog: ModelCatalog, admission: Admission, init_image_loader: InitImageLoader, job_maker: JobMaker
    ) -> None:
        self._catalog = catalog
        self._admission = admission
        self._init_image_loader = init_image_loader
        self._job_maker = job_maker

    async def upscale(
        self,
        content: bytes,
        find_factor: Callable[[int, int], float],
        method: UpscaleMethod,
        member: Member,
        destination: Destination,
    ) -> AcceptedJob:
        """Upscale an uploaded picture. `find_factor`: how much at least, from its width and height in pixels.

        The smallest factor of the upscaler that suffices is taken. Raises `UserError`, also if the picture would become
        too large.
        """
        await self._admission.check_before_content("upscale", member, None, "")
        async with self._init_image_loader.open_init_images(member, InitImages((content,))) as loaded_images:
            source = loaded_images.inputs[0]
            factor = _choose_factor(find_factor(source.width, source.height))
            _check_side(source.width, source.height, factor)
            pool = self._catalog.choose_live_pool(DEFAULT_POOL)
            ms_per_megapixel = self._catalog.upscale_ms(pool)
            method = "lanczos" if ms_per_megapixel == 0 else method
            task = UpscaleTask(source=source.sha256, factor=factor, method=method)
            cost = upscale_cost(task, source.width, source.height, ms_per_megapixel or SUPER_RESOLVER_MS_PER_MP)
            request = JobRequest("upscale", "", loaded_images.notes, task, pool, cost, inputs=loaded_images.inputs)
            return (await self._job_maker.admit([request], member, destination, None, loaded_images))[0]


def _choose_factor(factor: float) -> int:
    fitting_factors = [whole_factor for whole_factor in UPSCALE_FACTORS if whole_factor >= factor]
    if factor <= 1 or not fitting_factors:
        raise UserError(
            f"A picture is made up to {max(UPSCALE_FACTORS)} times as large, and this would be {factor:.3g}."
        )
    return min(fitting_factors)


def _check_side(width: int, height: int, factor: int) -> None:
    if max(width, height) * factor > MAX_SIDE:
        raise UserError(
            f"×{factor} of {width} × {height} pixels is too large: the longer side may have {MAX_SIDE} pixels at most."
        )
