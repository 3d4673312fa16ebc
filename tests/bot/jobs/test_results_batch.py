"""One batch stores a job's first reports, in order, of one epoch and up to a size."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from bot.jobs.results import select_batch
from engine.contract import JobFailed, JobFinished, JobStarted, PictureReady

JOB = "01ARZ3NDEKTSV4RRFFQ69G5FAV"
KINDS = ("picture", "picture", "picture", "ladder", "finished", "failed", "started")


def make_report(kind, epoch, image, size, is_good):
    values = {
        "started": lambda: JobStarted(job=JOB, epoch=epoch, worker="hand"),
        "failed": lambda: JobFailed(job=JOB, epoch=epoch, reason="no", blame="model"),
        "finished": lambda: JobFinished(job=JOB, epoch=epoch, cost=1.0, seconds=1.0, ms_per_step=1.0),
    }
    value = (
        values[kind]()
        if kind in values
        else PictureReady(
            job=JOB,
            image=image,
            epoch=epoch,
            kind="ladder" if kind == "ladder" else "image",
            sha256="0" * 64,
            bytes=size,
            width=64,
            height=64,
        )
    )
    return SimpleNamespace(value=value, good=is_good)


REPORTS = st.builds(
    make_report,
    st.sampled_from(KINDS),
    st.integers(1, 2),
    st.integers(0, 3),
    st.integers(1, 60),
    st.sampled_from((True, True, True, False)),
)


@given(st.lists(REPORTS, min_size=1, max_size=12))
def test_a_batch_is_the_longest_prefix_that_may_be_stored_together(reports):
    prefix = select_batch(reports, is_good, 100)
    assert prefix
    assert prefix == reports[: len(prefix)]
    if len(prefix) > 1:
        assert all(can_join(prefix[:count], prefix[count]) for count in range(1, len(prefix)))
    if len(prefix) < len(reports) and is_good_picture(reports[0]):
        assert not can_join(prefix, reports[len(prefix)])


def is_good(one: Any) -> bool:
    return one.good


def is_good_picture(one):
    return one.good and isinstance(one.value, PictureReady)


def can_join(before, one):
    pictures = [each.value for each in before]
    if not one.good or one.value.epoch != pictures[0].epoch or not all(map(is_good_picture, before)):
        return False
    if isinstance(one.value, JobFinished):
        return True
    if not isinstance(one.value, PictureReady) or sum(each.bytes for each in [*pictures, one.value]) > 100:
        return False
    return (one.value.kind, one.value.image) not in {(each.kind, each.image) for each in pictures}
