"""Batches the forwards of images that run through whole pipelines, and tracks which of them wait for one.

An image is *ready* while it waits for a forward. It is *away* while its thread works by itself: it encodes text or
decodes. The engine waits for away images only if it has nothing else to do. Scheduling happens elsewhere.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Thread
from typing import Any

import torch

from engine.strands.gather import Gathering
from engine.whole import Whole

MOST_STRANDS = 64  # threads at once; later images start as earlier ones end
GLANCE = 0.05  # seconds to wait for away images if there is nothing else to do


@dataclass(frozen=True)
class Answers:
    """The outputs of the forwards, one for each image of a batch."""

    images: list[Whole]
    outputs: list[Any]


class Coalescing:
    """Used only by its engine's thread."""

    def __init__(self) -> None:
        self.gathering = Gathering()
        self._here: list[Whole] = []
        self._away: list[Whole] = []
        self._leaving: list[Thread] = []  # of removed images, until they reach their next forward

    @property
    def away(self) -> bool:
        """Whether some image is away, and so will come back by itself."""
        return bool(self._away)

    def add(self, image: Whole) -> None:
        self._here.append(image)
        self._away.append(image)

    def back(self, wait: bool) -> list[Whole]:
        """Return images that were away and are now ready or finished. `wait`: if there are none, wait a moment."""
        if not self._away:
            return []
        if wait:
            self.wait()
        else:
            self._begin()
        back = self._rested()
        self._away = [image for image in self._away if image not in back]
        return back

    def wait(self) -> bool:
        """Wait a moment if no away image is ready; return whether one is. Leaves them all in `away`."""
        self._begin()
        if not self._rested():
            self._pass_time()
        return bool(self._rested())

    def forward(self, batch: Sequence[Whole], most: int) -> Answers:
        """Run the forwards that a batch of ready images waits for; changes no image."""
        calls = [(image, call) for image in batch if (call := image.call) is not None]
        with torch.inference_mode(False), torch.no_grad():  # pipelines may write into their inputs
            outputs = self.gathering.run([call for _, call in calls], most, batch[0].bucket)
        return Answers([image for image, _ in calls], outputs)

    def answer(self, answers: Answers) -> list[Whole]:
        """Let each image continue to its next forward or its end. Return the images that are away now."""
        for image, output in zip(answers.images, answers.outputs, strict=True):
            image.strand.answer(output)
        left = [image for image in answers.images if image.strand.rest() is None or image.end is not None]
        self._away += left
        return left

    def remove(self, image: Whole) -> None:
        """Remove an image in any state. Its thread ends by itself, at its next forward at the latest."""
        image.strand.close()
        self._here.remove(image)
        if image in self._away:
            self._away.remove(image)
        mine = image.strand.thread
        self._leaving = [thread for thread in (*self._leaving, mine) if thread is not None and thread.is_alive()]

    def close(self) -> None:
        """Remove all images and wait until their threads have ended."""
        for image in list(self._here):
            self.remove(image)
        for thread in self._leaving:
            thread.join()
        self._leaving = []

    def _begin(self) -> None:
        self._leaving = [thread for thread in self._leaving if thread.is_alive()]
        free = MOST_STRANDS - len(self._leaving) - sum(image.strand.started for image in self._here)
        for image in [image for image in self._away if not image.strand.started][: max(0, free)]:
            image.strand.rest(0)

    def _rested(self) -> list[Whole]:
        return [image for image in self._away if image.strand.started and image.strand.rest(0) is not None]

    def _pass_time(self) -> None:
        begun = next((image for image in self._away if image.strand.started), None)
        if begun is not None:
            begun.strand.rest(GLANCE)
        elif self._away:  # the thread limit is reached by paused images
            time.sleep(GLANCE)
