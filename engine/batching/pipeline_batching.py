"""Batches the forwards of images that run through whole pipelines, and tracks which of them wait for one.

An image is *ready* while it waits for a forward. It is *busy* while its thread works by itself: it encodes text or
decodes. The engine waits for busy images only if it has nothing else to do. Scheduling happens elsewhere.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Thread
from typing import Any

import torch

from engine.batching.pipeline_image import PipelineImage
from engine.pipelines.forward_batcher import ForwardBatcher

MAX_THREADS = 64  # threads at once; later images start as earlier ones end
WAIT_SECONDS = 0.05  # seconds to wait for busy images if there is nothing else to do


@dataclass(frozen=True)
class PipelineOutputs:
    """The outputs of the forwards, one for each image of a batch."""

    images: list[PipelineImage]
    outputs: list[Any]


class PipelineBatching:
    """Used only by its engine's thread."""

    def __init__(self) -> None:
        self.batcher = ForwardBatcher()
        self._images: list[PipelineImage] = []
        self._busy: list[PipelineImage] = []
        self._ending_threads: list[Thread] = []  # of removed images, until they reach their next forward

    @property
    def has_busy_images(self) -> bool:
        """Whether some image is busy, and so becomes ready by itself."""
        return bool(self._busy)

    def add(self, image: PipelineImage) -> None:
        self._images.append(image)
        self._busy.append(image)

    def collect_ready(self, wait: bool) -> list[PipelineImage]:
        """Return images that were busy and are now ready or finished. `wait`: if there are none, wait a moment."""
        if not self._busy:
            return []
        if wait:
            self.wait_for_ready()
        else:
            self._start_threads()
        ready = self._ready_images()
        self._busy = [image for image in self._busy if image not in ready]
        return ready

    def wait_for_ready(self) -> bool:
        """Wait a moment if no busy image is ready; return whether one is. It collects none of them."""
        self._start_threads()
        if not self._ready_images():
            self._wait_briefly()
        return bool(self._ready_images())

    def run_forwards(self, batch: Sequence[PipelineImage], max_rows: int) -> PipelineOutputs:
        """Run the forwards that a batch of ready images waits for; changes no image."""
        calls = [(image, call) for image in batch if (call := image.pending_call) is not None]
        with torch.inference_mode(False), torch.no_grad():  # pipelines may write into their inputs
            outputs = self.batcher.run([call for _, call in calls], max_rows, batch[0].bucket)
        return PipelineOutputs([image for image, _ in calls], outputs)

    def resume_images(self, batch_outputs: PipelineOutputs) -> list[PipelineImage]:
        """Let each image continue to its next forward or its end. Return the images that are busy now."""
        for image, output in zip(batch_outputs.images, batch_outputs.outputs, strict=True):
            image.pipeline_thread.answer(output)
        busy = [
            image for image in batch_outputs.images if image.pipeline_thread.poll() is None or image.outcome is not None
        ]
        self._busy += busy
        return busy

    def remove(self, image: PipelineImage) -> None:
        """Remove an image in any state. Its thread ends by itself, at its next forward at the latest."""
        image.pipeline_thread.close()
        self._images.remove(image)
        if image in self._busy:
            self._busy.remove(image)
        own_thread = image.pipeline_thread.thread
        self._ending_threads = [
            thread for thread in (*self._ending_threads, own_thread) if thread is not None and thread.is_alive()
        ]

    def close(self) -> None:
        """Remove all images and wait until their threads have ended."""
        for image in list(self._images):
            self.remove(image)
        for thread in self._ending_threads:
            thread.join()
        self._ending_threads = []

    def _start_threads(self) -> None:
        self._ending_threads = [thread for thread in self._ending_threads if thread.is_alive()]
        free_threads = (
            MAX_THREADS - len(self._ending_threads) - sum(image.pipeline_thread.is_started for image in self._images)
        )
        for image in [image for image in self._busy if not image.pipeline_thread.is_started][: max(0, free_threads)]:
            image.pipeline_thread.poll(0)

    def _ready_images(self) -> list[PipelineImage]:
        return [
            image
            for image in self._busy
            if image.pipeline_thread.is_started and image.pipeline_thread.poll(0) is not None
        ]

    def _wait_briefly(self) -> None:
        started_image = next((image for image in self._busy if image.pipeline_thread.is_started), None)
        if started_image is not None:
            started_image.pipeline_thread.poll(WAIT_SECONDS)
        elif self._busy:  # the thread limit is reached by paused images
            time.sleep(WAIT_SECONDS)
