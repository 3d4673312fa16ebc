"""Coalescing: where the images are that go whole, and the forwards that they share.

An image is *ready* where it waits for a forward, and *away* while its strand works by itself: it reads its words, or
decodes. Nobody waits for those who are away, unless there is nothing else to do. Knows strands; not when who is served.
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

MOST_STRANDS = 64  # threads at once: whoever comes later begins when another has ended
GLANCE = 0.05  # seconds to wait for who is away, where there is nothing else to do


@dataclass(frozen=True)
class Answers:
    """What the forwards gave to each image of a batch."""

    images: list[Whole]
    outputs: list[Any]


class Coalescing:
    """Belongs to one engine's thread."""

    def __init__(self) -> None:
        self.gathering = Gathering()
        self._here: list[Whole] = []
        self._away: list[Whole] = []
        self._leaving: list[Thread] = []  # of closed ones, still on the way to their next question

    @property
    def away(self) -> bool:
        """Whether anybody is away, and so will come back by itself."""
        return bool(self._away)

    def add(self, image: Whole) -> None:
        self._here.append(image)
        self._away.append(image)

    def back(self, wait: bool) -> list[Whole]:
        """Who was away and is ready, or has ended. With `wait`, it gives them a moment where none is."""
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
        """Gives those who are away a moment where none is ready; whether one is. It takes nobody back."""
        self._begin()
        if not self._rested():
            self._pass_time()
        return bool(self._rested())

    def forward(self, batch: Sequence[Whole], most: int) -> Answers:
        """The forwards that a batch of ready images waits for; nothing changes yet."""
        calls = [(image, call) for image in batch if (call := image.call) is not None]
        with torch.inference_mode(False), torch.no_grad():  # pipelines may write into what they are given
            outputs = self.gathering.run([call for _, call in calls], most, batch[0].bucket)
        return Answers([image for image, _ in calls], outputs)

    def answer(self, answers: Answers) -> list[Whole]:
        """Each goes on, to its next question or its end. Returns whoever is away now."""
        for image, output in zip(answers.images, answers.outputs, strict=True):
            image.strand.answer(output)
        left = [image for image in answers.images if image.strand.rest() is None or image.end is not None]
        self._away += left
        return left

    def remove(self, image: Whole) -> None:
        """Out it goes, wherever it is; its thread ends by itself, at its next question at the latest."""
        image.strand.close()
        self._here.remove(image)
        if image in self._away:
            self._away.remove(image)
        mine = image.strand.thread
        self._leaving = [thread for thread in (*self._leaving, mine) if thread is not None and thread.is_alive()]

    def close(self) -> None:
        """No thread is left when it returns."""
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
        elif self._away:  # too many others are here, and none of them goes on: all are paused
            time.sleep(GLANCE)
