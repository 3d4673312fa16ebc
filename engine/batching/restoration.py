"""Continues a job's images from their snapshots, those of splits included."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from engine.batching.trajectory import Trajectory
from engine.contract import ImageLife, Snapshot, list_needed_lives

log = logging.getLogger(__name__)


def restore_images(
    images: Sequence[Trajectory], snapshots: Sequence[Snapshot], rebuild: Callable[[], Sequence[Trajectory]]
) -> Sequence[Trajectory]:
    """Return the images as far as snapshots say, with those that splits have made; nobody needs the dropped ones.

    An image whose snapshot is bad starts over. In a job with splits all images do, by `rebuild`, since a new image
    begins only when the one that it leaves passes the split. They come out the same.
    """
    splits = [life for life in list_needed_lives(images[0].job_recipe) if life.parent is not None]
    if splits:
        try:
            images = [*images, *_restore_with_splits(images, splits, snapshots)]
        except ValueError as error:
            log.warning("job %s starts over: %s", images[0].job, error)
            return rebuild()
    else:
        for image in images:
            _restore_image(image, snapshots)
    return [image for image in images if not image.is_dropped]


def _restore_image(image: Trajectory, snapshots: Sequence[Snapshot]) -> None:
    if snapshot := _find_snapshot(image, snapshots):
        try:
            image.restore(snapshot)
        except ValueError as error:
            log.warning("job %s image %d starts over: %s", image.job, image.image, error)


def _restore_with_splits(
    images: Sequence[Trajectory], splits: Sequence[ImageLife], snapshots: Sequence[Snapshot]
) -> list[Trajectory]:
    """Restore images, and return those that splits have made. Raises ValueError if a snapshot is bad or missing."""
    present = {image.life.key: image for image in images}
    for image in images:
        if snapshot := _find_snapshot(image, snapshots):
            image.restore(snapshot)
    for life in splits:
        parent = None if life.parent is None else present.get(life.parent.key)
        if parent is None:  # it is made later, too
            continue
        image = parent.split(life)
        if snapshot := _find_snapshot(image, snapshots):
            image.restore(snapshot)
            present[life.key] = image
        elif parent.k >= life.first_step:
            raise ValueError("a split image has no snapshot")
    return [image for image in present.values() if image not in images]


def _find_snapshot(image: Trajectory, snapshots: Sequence[Snapshot]) -> Snapshot | None:
    return next((snapshot for snapshot in snapshots if image.is_snapshot_of(snapshot)), None)
