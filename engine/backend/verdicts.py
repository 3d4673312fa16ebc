"""The operator's picture check of a backend's pictures, in a thread of its own. Without one, nothing is checked."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from PIL import Image

from engine.contract import Job, Verdict
from engine.picture_files.decoding import open_image


class ChecksPictures(Protocol):
    """A check with its verdicts by job (`engine.output.picture_check.JobVerdicts`)."""

    def check_preview(self, job: Job, image: int, steps_share: float, decode_x0: Callable[[], Image.Image]) -> Verdict:
        """Return the verdict on an image's previews, "unchecked" while they show too little."""
        ...

    def check_final(self, job: Job, content: bytes) -> Verdict:
        """Return the verdict on a finished PNG."""
        ...

    def forget_job(self, job: str) -> None: ...


class Verdicts:
    """Belongs to the event loop."""

    def __init__(self, checks: ChecksPictures | None = None) -> None:
        self._checks = checks
        self._thread = ThreadPoolExecutor(1, "picture check")

    @property
    def has_check(self) -> bool:
        return self._checks is not None

    async def check_preview(self, job: Job, image: int, share: float, jpeg: bytes) -> Verdict:
        """Return the verdict on a preview of an image of which `share` is done, 0 to 1."""
        checks = self._checks
        if checks is None or not job.check:
            return "unchecked"
        return await self._run(lambda: checks.check_preview(job, image, share, lambda: open_image(jpeg)))

    async def check_final(self, job: Job, png: bytes) -> Verdict:
        """Return the verdict on a finished picture."""
        checks = self._checks
        if checks is None or not job.check:
            return "unchecked"
        return await self._run(lambda: checks.check_final(job, png))

    def forget_job(self, job: str) -> None:
        """Drop what is known of a job that has left."""
        if self._checks is not None:
            self._thread.submit(self._checks.forget_job, job)

    def close(self) -> None:
        """Drop waiting checks; the current one finishes by itself."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _run(self, work: Callable[[], Verdict]) -> Verdict:
        return await asyncio.wrap_future(self._thread.submit(work))
